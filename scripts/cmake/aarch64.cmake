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

# Packages of the target, Open MPI among them: its compiler wrapper is a program of the target.
set(ENV{PKG_CONFIG_LIBDIR} /usr/lib/${target}/pkgconfig:/usr/share/pkgconfig)
set(MPI_CXX_COMPILER MPI_CXX_COMPILER-NOTFOUND CACHE FILEPATH "None that runs here: pkg-config tells of MPI")
set(PTRT_CUDA OFF CACHE BOOL "A plug-in is built where its GPUs are, or with a toolkit for sbsa")
