# Whether this build has the CUDA backend (HONE_WITH_CUDA), and what it is compiled with and linked to
# (hone_cuda_libraries).
#
# Of NVIDIA's libraries only the CUDA runtime is linked, statically: without a driver there are no
# devices. Of the others only headers are needed here; what they name is loaded at its first use
# (runtime/nvidia_library.h).
set(HONE_CUDA AUTO CACHE STRING "CUDA backend: AUTO (where nvcc and the headers are found), ON, OFF")
set(HONE_CUDA_ARCHITECTURES 90a CACHE STRING "GPU architectures; '80;90a' for a bundle")
set(HONE_WITH_CUDA OFF)
if(HONE_CUDA STREQUAL OFF)
  return()
endif()

find_program(HONE_NVCC nvcc HINTS ENV CUDA_HOME PATHS /usr/local/cuda/bin PATH_SUFFIXES bin)
if(HONE_NVCC AND NOT DEFINED ENV{CUDACXX})
  set(ENV{CUDACXX} ${HONE_NVCC})
endif()
if(NOT CMAKE_CUDA_COMPILER)  # CUDA may have been installed since
  unset(CMAKE_CUDA_COMPILER CACHE)
endif()
include(CheckLanguage)
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  find_package(CUDAToolkit 13 QUIET)
  foreach(header cublasLt.h cudnn.h nccl.h)
    find_path(HONE_PATH_OF_${header} ${header} HINTS ${CUDAToolkit_INCLUDE_DIRS})
    mark_as_advanced(HONE_PATH_OF_${header})
  endforeach()
endif()
set(found "nvcc: ${CMAKE_CUDA_COMPILER}, of CUDA ${CUDAToolkit_VERSION}; cublasLt.h: \
${HONE_PATH_OF_cublasLt.h}; cudnn.h: ${HONE_PATH_OF_cudnn.h}; nccl.h: ${HONE_PATH_OF_nccl.h}")
if(NOT (CMAKE_CUDA_COMPILER AND CUDAToolkit_FOUND AND HONE_PATH_OF_cublasLt.h AND
        HONE_PATH_OF_cudnn.h AND HONE_PATH_OF_nccl.h))
  if(HONE_CUDA STREQUAL AUTO)
    message(STATUS "CUDA backend: not built; it needs CUDA 13 or later with cuDNN and NCCL (${found})")
    return()
  endif()
  message(FATAL_ERROR "HONE_CUDA=ON needs CUDA 13 or later with cuDNN and NCCL (${found})")
endif()

set(CMAKE_CUDA_ARCHITECTURES ${HONE_CUDA_ARCHITECTURES})
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 20)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc has C++20
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_FLAGS_RELWITHDEBINFO "-O3")
set(HONE_WITH_CUDA ON)
message(STATUS "CUDA backend: ${CUDAToolkit_VERSION} for sm_${HONE_CUDA_ARCHITECTURES}")

# nvcc cannot evaluate fmt's checks of format strings; the host compiler does, in every other file.
set(HONE_CUDA_FLAGS -fmad=false --Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Werror
                    -Xcompiler=-ffp-contract=off -DFMT_CONSTEVAL= -DFMT_USE_CONSTEXPR=1)
add_library(hone_cuda_libraries INTERFACE)
target_include_directories(hone_cuda_libraries SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS}
                           ${HONE_PATH_OF_cudnn.h} ${HONE_PATH_OF_nccl.h})
target_link_libraries(hone_cuda_libraries INTERFACE CUDA::cudart_static ${CMAKE_DL_LIBS})

# cuDNN's frontend is headers only, and in no Debian package: ./hone fetches it into the build folder.
# Without it our own attention serves the fast mode too.
find_path(HONE_CUDNN_FRONTEND cudnn_frontend.h HINTS ${CMAKE_BINARY_DIR}/cudnn-frontend/include)
if(HONE_CUDNN_FRONTEND)
  target_include_directories(hone_cuda_libraries SYSTEM INTERFACE ${HONE_CUDNN_FRONTEND})
  target_compile_definitions(hone_cuda_libraries INTERFACE CUDNN_FRONTEND_SKIP_JSON_LIB)
  set(HONE_CUDNN_LEFT_OUT "cudnn_attention_absent_cuda\\.cc$")
else()
  message(STATUS "cuDNN attention: not built, no cudnn_frontend.h (HONE_CUDNN_FRONTEND)")
  set(HONE_CUDNN_LEFT_OUT "/cudnn_(attention|library)_cuda\\.cc$")
endif()
