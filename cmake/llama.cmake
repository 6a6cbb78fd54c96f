# llama.cpp as scripts/setup installs it: headers, libllama, libggml and the tools; and ggml's backend
# interface (ggml-backend-impl.h), which the ggml integration implements.
if(NOT FASA_LLAMA_PREFIX)
  set(FASA_LLAMA_PREFIX ${PROJECT_SOURCE_DIR}/build/deps/llama)
endif()
if(EXISTS ${FASA_LLAMA_PREFIX}/include/llama.h)
  add_library(fasa_llama INTERFACE)
  target_include_directories(fasa_llama SYSTEM INTERFACE ${FASA_LLAMA_PREFIX}/include ${FASA_LLAMA_PREFIX}/include/ggml-impl)
  target_link_directories(fasa_llama INTERFACE ${FASA_LLAMA_PREFIX}/lib)
  target_link_libraries(fasa_llama INTERFACE llama ggml ggml-base)
  target_link_options(fasa_llama INTERFACE -Wl,-rpath,${FASA_LLAMA_PREFIX}/lib)
  # Where the tools and the backend library look for llama.cpp's own backends and programs.
  set(FASA_LLAMA_LIB_DIR ${FASA_LLAMA_PREFIX}/lib)
  set(FASA_LLAMA_BIN_DIR ${FASA_LLAMA_PREFIX}/bin)
endif()
