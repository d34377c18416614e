# Warnings, sanitizers, and the helper that makes one library target a folder.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})

option(PTRT_WERROR "Warnings are errors" ON)
set(PTRT_SANITIZE "" CACHE STRING "Sanitizers to build with, e.g. address or undefined")

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

add_library(ptrt_build_options INTERFACE)
# -ffp-contract=off: a sum must round the same way wherever the compiler inlines it.
target_compile_options(ptrt_build_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:
  -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -ffp-contract=off
  $<$<BOOL:${PTRT_WERROR}>:-Werror>>)
if(PTRT_SANITIZE)
  target_compile_options(ptrt_build_options INTERFACE
    -fsanitize=${PTRT_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -fno-var-tracking)
  target_link_options(ptrt_build_options INTERFACE -fsanitize=${PTRT_SANITIZE})
endif()

# ptrt_folder(NAME SOURCES ... DEPENDS ... PRIVATE_DEPENDS ...): the library ptrt_NAME of the folder NAME. Headers are
# included as "NAME/header.h" through a directory that shows this folder alone, so an include against the direction
# kernels <- model_io <- runtime <- launch does not compile.
function(ptrt_folder name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPENDS;PRIVATE_DEPENDS" ${ARGN})
  set(view ${CMAKE_BINARY_DIR}/include_views/${name})
  file(MAKE_DIRECTORY ${view})
  file(CREATE_LINK ${CMAKE_SOURCE_DIR}/${name} ${view}/${name} SYMBOLIC)
  add_library(ptrt_${name} STATIC ${arg_SOURCES})
  target_include_directories(ptrt_${name} PUBLIC ${view})
  target_link_libraries(ptrt_${name} PUBLIC fmt::fmt ${arg_DEPENDS} PRIVATE ptrt_build_options ${arg_PRIVATE_DEPENDS})
endfunction()
