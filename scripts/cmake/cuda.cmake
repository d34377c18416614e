# Finds nvcc (CUDA_HOME of Makefile.inc, $CUDA_HOME, /usr/local/cuda, PATH). Sets PTRT_CUDA_INCLUDE to the toolkit's
# headers where they are (tests need no more), and PTRT_HAS_CUDA where kernels can be compiled. Beside it NCCL's
# header (NCCL_HOME of Makefile.inc, $NCCL_HOME, the toolkit, the system's paths): PTRT_NCCL_INCLUDE, PTRT_HAS_NCCL where
# kernels can be compiled too. The library is loaded at run time; PTRT_NCCL_LIBRARY is where it is now, if anywhere.
option(PTRT_CUDA "Build the CUDA backend where nvcc is found" ON)
set(PTRT_HAS_CUDA OFF)
if(PTRT_PROGRAM_ONLY)
  return()
endif()
find_program(PTRT_NVCC nvcc HINTS ${PTRT_SITE_CUDA_HOME}/bin $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
find_path(PTRT_CUDA_INCLUDE cuda_bf16.h HINTS ${PTRT_SITE_CUDA_HOME}/include $ENV{CUDA_HOME}/include /usr/local/cuda/include)
find_path(PTRT_NCCL_INCLUDE nccl.h HINTS
  ${PTRT_SITE_NCCL_HOME}/include $ENV{NCCL_HOME}/include ${PTRT_CUDA_INCLUDE})

if(NOT PTRT_CUDA)
  message(STATUS "CUDA: left out (PTRT_CUDA=OFF)")
elseif(NOT PTRT_NVCC)
  message(STATUS "CUDA: no nvcc found, the build has no CUDA backend (CUDA_HOME in Makefile.inc says where it is)")
elseif(PTRT_SANITIZE)
  message(STATUS "CUDA: left out of a build with sanitizers, where the host emulation runs the same kernels")
else()
  set(CMAKE_CUDA_COMPILER ${PTRT_NVCC})
  set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
  # The last architecture also as PTX, for GPUs that are newer.
  set(real ${PTRT_SITE_CUDA_ARCHITECTURES})
  list(POP_BACK real last)
  list(TRANSFORM real APPEND -real)
  set(CMAKE_CUDA_ARCHITECTURES ${real} ${last})
  set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
  enable_language(CUDA)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc 13 has it
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  if(CCACHE_PROGRAM)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
  endif()
  find_package(CUDAToolkit REQUIRED)
  set(PTRT_HAS_CUDA ON)
  message(STATUS "CUDA: ${PTRT_NVCC} (${CMAKE_CUDA_COMPILER_VERSION}), architectures ${CMAKE_CUDA_ARCHITECTURES}")

  find_library(PTRT_NCCL_LIBRARY nccl HINTS
    ${PTRT_SITE_NCCL_HOME}/lib ${PTRT_SITE_NCCL_HOME}/lib64 $ENV{NCCL_HOME}/lib ${CUDAToolkit_LIBRARY_DIR}
    ${CUDAToolkit_LIBRARY_ROOT}/lib)
  if(PTRT_NCCL_INCLUDE)
    set(PTRT_HAS_NCCL ON)
    if(PTRT_NCCL_LIBRARY)
      message(STATUS "NCCL: loaded at run time (${PTRT_NCCL_LIBRARY})")
    else()
      message(STATUS "NCCL: only its header is here; at run time LD_LIBRARY_PATH says where libnccl.so.2 is")
    endif()
  else()
    set(PTRT_HAS_NCCL OFF)
    message(STATUS "NCCL: no header, ranks on GPUs meet through the host (NCCL_HOME in Makefile.inc says where it is)")
  endif()
endif()
