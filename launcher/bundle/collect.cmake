# Runs when the bundle is installed: copies what the programs link to beside them, and rewrites every
# search path to be relative to the file that has it.
if(NOT patchelf OR NOT orterun OR NOT orted)
  message(FATAL_ERROR "a bundle needs patchelf and Open MPI's orterun and orted: apt-get install patchelf")
endif()
set(root ${CMAKE_INSTALL_PREFIX})
set(plugin_folder lib/x86_64-linux-gnu/openmpi/lib/openmpi3)  # where OPAL_PREFIX makes Open MPI look

file(COPY ${orterun} ${orted} DESTINATION ${root}/libexec FOLLOW_SYMLINK_CHAIN)
file(GLOB plugins ${open_mpi_plugins}/*.so)
# Fortran's, I/O, Java, and the debugger's parts are not for hone.
list(FILTER plugins EXCLUDE REGEX "/(mca_io_|mca_fs_|mca_fcoll_|mca_sharedfp_|mca_fbtl_|libompi_dbg)")
file(COPY ${plugins} DESTINATION ${root}/${plugin_folder} FOLLOW_SYMLINK_CHAIN)
file(COPY /usr/share/openmpi DESTINATION ${root}/share PATTERN "*-wrapper-data.txt" EXCLUDE)
file(COPY /etc/openmpi/openmpi-mca-params.conf DESTINATION ${root}/etc/openmpi)

file(GLOB tests ${root}/libexec/tests/*)
file(GET_RUNTIME_DEPENDENCIES
  EXECUTABLES ${root}/libexec/hone ${root}/libexec/orterun ${root}/libexec/orted ${tests}
  MODULES ${plugins}
  RESOLVED_DEPENDENCIES_VAR libraries
  UNRESOLVED_DEPENDENCIES_VAR missing
  PRE_EXCLUDE_REGEXES
    "^ld-linux" "^lib(c|m|mvec|dl|rt|pthread|resolv|util)\\.so")
if(missing)
  message(FATAL_ERROR "the bundle lacks libraries that its programs need: ${missing}")
endif()
foreach(library ${libraries})
  get_filename_component(name ${library} NAME)
  get_filename_component(real ${library} REALPATH)
  file(COPY_FILE ${real} ${root}/lib/${name})
endforeach()

file(GLOB libraries ${root}/lib/*.so*)
file(GLOB plugins ${root}/${plugin_folder}/*.so)
function(relocate rpath)
  foreach(file ${ARGN})
    if(NOT IS_SYMLINK ${file})
      file(CHMOD ${file} PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE
           WORLD_READ WORLD_EXECUTE)
      execute_process(COMMAND ${strip} --strip-unneeded ${file} COMMAND_ERROR_IS_FATAL ANY)
      execute_process(COMMAND ${patchelf} --set-rpath ${rpath} ${file} COMMAND_ERROR_IS_FATAL ANY)
    endif()
  endforeach()
endfunction()
relocate("\$ORIGIN/../lib" ${root}/libexec/hone ${root}/libexec/orterun ${root}/libexec/orted)
relocate("\$ORIGIN/../../lib" ${tests})
relocate("\$ORIGIN" ${libraries})
relocate("\$ORIGIN/../../../.." ${plugins})
