# Injected into llama.cpp's own build (CMAKE_PROJECT_llama.cpp_INCLUDE), which it makes three times shorter. Its sources stay as
# they are. ggml and the core of libllama keep their own -O3. What no token waits for (argument parsing, chat templates,
# multimodal, HTTP, and the model files, which build a graph once and have it reused) is compiled at -O1 in large unity batches.
set(FASA_AMX_INTRINSICS ${CMAKE_CURRENT_LIST_DIR}/amx_intrinsics.h)
function(fasa_shorten_build)
  foreach(target llama-common server-context llama-server-impl cpp-httplib llama-bench-impl llama-completion-impl
                 llama-perplexity-impl)
    target_compile_options(${target} PRIVATE -O1)
  endforeach()
  target_compile_options(mtmd PRIVATE -O0)
  set_target_properties(mtmd PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 12)
  # Its helpers refuse to be compiled beside its internal headers.
  file(GLOB helpers ${CMAKE_SOURCE_DIR}/tools/mtmd/mtmd-helper*.cpp)
  set_source_files_properties(${helpers} TARGET_DIRECTORY mtmd PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  set_target_properties(llama-common server-context PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 6)
  # json.cpp specialises templates that other files of its batch instantiate.
  set_source_files_properties(${CMAKE_SOURCE_DIR}/common/json.cpp TARGET_DIRECTORY llama-common
                              PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)

  # libllama's unity batches are its model files; the core files are compiled one by one.
  target_compile_options(llama PRIVATE -O1)
  file(GLOB core ${CMAKE_SOURCE_DIR}/src/*.cpp)
  set_source_files_properties(${core} TARGET_DIRECTORY llama PROPERTIES COMPILE_OPTIONS -O3)

  # With backends as modules llama.cpp refuses GGML_NATIVE, which is what it uses otherwise: the baseline is it at its best.
  if(FASA_LLAMA_NATIVE)
    target_compile_options(ggml-cpu PRIVATE -march=native "SHELL:-include ${FASA_AMX_INTRINSICS}")
  endif()
endfunction()
cmake_language(DEFER DIRECTORY ${CMAKE_SOURCE_DIR} CALL fasa_shorten_build)
