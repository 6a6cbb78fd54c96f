# Tests of `fasa calibrate` and `fasa inspect`.
fasa_test(text_windows_test SOURCES text_windows_test.cc text_windows.cc LIBS fmt::fmt)
fasa_test(calibrate_e2e_test SOURCES calibrate_e2e_test.cc LIBS nlohmann_json::nlohmann_json TIMEOUT 600 PROCESSORS 2)
if(TARGET calibrate_e2e_test)
  add_dependencies(calibrate_e2e_test fasa_program)
  target_compile_definitions(calibrate_e2e_test PRIVATE
    FASA_PROGRAM="$<TARGET_FILE:fasa_program>" FASA_SOURCE_DIR="${PROJECT_SOURCE_DIR}"
    FASA_TEST_MODEL="${PROJECT_SOURCE_DIR}/build/deps/models/SmolLM2-135M-Instruct.Q4_1.gguf")
endif()
