# fasa::fasa, a shared library; its public headers need C++20 and nothing else.
include(${CMAKE_CURRENT_LIST_DIR}/fasa_targets.cmake)
