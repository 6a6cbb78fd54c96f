# cmake --install: the library with its headers and package, and (where llama.cpp was found) the program and the ggml backend.
# find_package(fasa) then gives fasa::fasa.
include(CMakePackageConfigHelpers)
set(FASA_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/fasa)

install(TARGETS fasa EXPORT fasa_targets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY include/fasa DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
install(EXPORT fasa_targets NAMESPACE fasa:: DESTINATION ${FASA_PACKAGE_DIR})
write_basic_package_version_file(fasaConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES cmake/fasaConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/fasaConfigVersion.cmake DESTINATION ${FASA_PACKAGE_DIR})

if(TARGET ggml-fasa)
  install(TARGETS ggml-fasa LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()

if(FASA_BUILD_TESTS)
  # Another project finds, links and runs the installed package; what is not installed is not seen.
  add_test(NAME find_package
           COMMAND ${CMAKE_COMMAND} -DBUILD=${CMAKE_BINARY_DIR} -DSOURCE=${PROJECT_SOURCE_DIR}/tests/package
                   -DLIBDIR=${CMAKE_INSTALL_LIBDIR} -DGENERATOR=${CMAKE_GENERATOR} -DCXX=${CMAKE_CXX_COMPILER}
                   -DC=${CMAKE_C_COMPILER} -DSANITIZE=${FASA_SANITIZE} -P ${PROJECT_SOURCE_DIR}/tests/package/run.cmake)
endif()
