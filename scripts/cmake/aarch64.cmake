# Cross-compiling for 64-bit Arm on Debian 12 (docs/INSTALL.md has the packages):
#     cmake -S . -B build-arm -DCMAKE_TOOLCHAIN_FILE=scripts/cmake/aarch64.cmake
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(target aarch64-linux-gnu)
set(CMAKE_C_COMPILER ${target}-gcc)
set(CMAKE_CXX_COMPILER ${target}-g++)
# Programs made here run in an emulation of the processor where there is one.
find_program(ptrt_qemu NAMES qemu-aarch64-static qemu-aarch64)
if(ptrt_qemu)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${ptrt_qemu} -cpu max)
endif()

# Packages of the target: its own pkg-config files, and Open MPI without its compiler wrapper, a program of the target.
set(ENV{PKG_CONFIG_LIBDIR} /usr/lib/${target}/pkgconfig:/usr/share/pkgconfig)
set(MPI_CXX_COMPILER MPI_CXX_COMPILER-NOTFOUND CACHE FILEPATH "No wrapper for the target")
set(MPI_CXX_HEADER_DIR /usr/lib/${target}/openmpi/include CACHE PATH "")
set(MPI_CXX_LIB_NAMES mpi CACHE STRING "")
set(MPI_mpi_LIBRARY /usr/lib/${target}/libmpi.so CACHE FILEPATH "")
set(PTRT_CUDA OFF CACHE BOOL "A plug-in is built where its GPUs are, or with a toolkit for sbsa")
