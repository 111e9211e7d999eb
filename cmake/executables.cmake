# bitvla_executable(NAME MODULE): an executable in lib/bitvla_ros that calls MODULE.main().
# Its interpreter is that of the environment the build ran in (a virtual environment on a robot), whatever PATH says later.
function(bitvla_executable name module)
  set(BITVLA_MODULE ${module})
  configure_file(${PROJECT_SOURCE_DIR}/cmake/executable.py.in ${CMAKE_CURRENT_BINARY_DIR}/executables/${name} @ONLY)
  install(PROGRAMS ${CMAKE_CURRENT_BINARY_DIR}/executables/${name} DESTINATION lib/${PROJECT_NAME})
endfunction()
