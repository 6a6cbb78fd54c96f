# Flags and helpers that every target of the project uses.
add_library(fasa_flags INTERFACE)
target_compile_options(fasa_flags INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Werror)
if(FASA_SANITIZE)
  target_compile_options(fasa_flags INTERFACE -fsanitize=${FASA_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(fasa_flags INTERFACE -fsanitize=${FASA_SANITIZE})
endif()

# fasa_test(name SOURCES ... [LIBS ...] [PROCESSORS n]): a GoogleTest program, one CTest entry. PROCESSORS: threads that it
# computes with, for `ctest -j`.
function(fasa_test name)
  if(NOT FASA_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "TIMEOUT;PROCESSORS" "SOURCES;LIBS;ENVIRONMENT" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE fasa fasa_flags ${ARG_LIBS} GTest::gtest_main rapidcheck)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)  # GoogleTest's macros take long to optimise
  add_test(NAME ${name} COMMAND ${name})
  if(ARG_TIMEOUT)
    set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT})
  endif()
  if(ARG_PROCESSORS)
    set_tests_properties(${name} PROPERTIES PROCESSORS ${ARG_PROCESSORS})
  endif()
  # RapidCheck draws from a fixed seed. Threads that wait leave the CPU to others: tests run on busy machines too.
  set_tests_properties(${name} PROPERTIES ENVIRONMENT "RC_PARAMS=seed=20260203;OMP_WAIT_POLICY=passive;${ARG_ENVIRONMENT}")
endfunction()

# fasa_bench(name SOURCES ...): a Google Benchmark program in bin/, not a test.
function(fasa_bench name)
  if(NOT FASA_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE fasa fasa_flags ${ARG_LIBS} benchmark::benchmark_main benchmark::benchmark)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
endfunction()
