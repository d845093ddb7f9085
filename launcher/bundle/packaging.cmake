# `cpack`, from the build folder: one archive with the program, the shared libraries that Debian
# gave it, and the parts of Open MPI that start ranks, all found by their place beside each other. Not in
# it: glibc, and what NVIDIA gives (driver, CUDA libraries), which belong to the machine.
# For a machine other than this one build with -DHONE_CPU_ARCH=x86-64-v3.
find_program(PATCHELF patchelf)
find_program(ORTERUN orterun)
find_program(ORTED orted)

set(CMAKE_SKIP_INSTALL_ALL_DEPENDENCY TRUE)  # the target `bundled` is what has to be built
install(TARGETS hone RUNTIME DESTINATION libexec)
install(PROGRAMS launcher/bundle/hone DESTINATION bin)
install(PROGRAMS launcher/bundle/open_mpi DESTINATION bin RENAME mpirun)
install(PROGRAMS launcher/bundle/open_mpi DESTINATION bin RENAME orted)
install(DIRECTORY configs DESTINATION share/hone)
install(DIRECTORY docs DESTINATION share/hone)
install(FILES LICENSE README.md DESTINATION share/hone)
install(PROGRAMS tests/gpu_check/gpu_check DESTINATION bin)
install(CODE "set(patchelf \"${PATCHELF}\")\nset(strip \"${CMAKE_STRIP}\")\n\
set(orterun \"${ORTERUN}\")\nset(orted \"${ORTED}\")\n\
set(open_mpi_plugins \"/usr/lib/${CMAKE_LIBRARY_ARCHITECTURE}/openmpi/lib/openmpi3\")")
install(SCRIPT launcher/bundle/collect.cmake)

set(CPACK_GENERATOR TXZ)  # the programs in it have much in common; gzip looks back 32 KB
set(CPACK_THREADS 0)
set(CPACK_PACKAGE_NAME hone)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGE_FILE_NAME hone-${PROJECT_VERSION}-${CMAKE_SYSTEM_PROCESSOR})
set(CPACK_STRIP_FILES OFF)  # collect.cmake does, before it changes the headers
include(CPack)
