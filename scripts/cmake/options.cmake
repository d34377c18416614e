# Warnings, sanitizers, and the helper that makes one library target a folder.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})

option(PTRT_WERROR "Warnings are errors" ON)
set(PTRT_SANITIZE "" CACHE STRING "Sanitizers to build with, e.g. address or undefined")
option(PTRT_FUZZ "Build the targets of tests/fuzz with clang's libFuzzer" OFF)

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

# The standard library's headers and fmt are parsed once for all folders. Other build types do without, so that a
# source that lacks an include is found (.ci/run builds one), and so that every ccache shares what it has.
set(precompile OFF)
if(CMAKE_BUILD_TYPE STREQUAL "Release" AND NOT PTRT_SANITIZE)
  set(precompile ON)
endif()
option(PTRT_PRECOMPILE "Precompile the headers of the standard library, fmt and GoogleTest" ${precompile})
if(PTRT_PRECOMPILE AND CCACHE_PROGRAM)
  # ccache asks for both, and for -fpch-preprocess below.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros ${CCACHE_PROGRAM})
endif()

# Sources that start the program, read its command line or write its reports, and the tests' own code: a third of the
# compile time at -O3, and no run time to speak of. For targets; sources of such a target that run once a request take
# the full one.
set(PTRT_LIGHT_OPTIMISATION $<$<AND:$<CONFIG:Release>,$<COMPILE_LANGUAGE:CXX>>:-O1>)
set(PTRT_FULL_OPTIMISATION $<$<CONFIG:Release>:-O3>)

add_library(ptrt_build_options INTERFACE)
# A library that nothing is taken from costs its loading all the same.
target_link_options(ptrt_build_options INTERFACE -Wl,--as-needed)
# -ffp-contract=off: a sum must round the same way wherever the compiler inlines it.
target_compile_options(ptrt_build_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:
  -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -ffp-contract=off
  $<$<BOOL:${PTRT_WERROR}>:-Werror>>)
if(PTRT_SANITIZE)
  target_compile_options(ptrt_build_options INTERFACE
    -fsanitize=${PTRT_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -fno-var-tracking)
  target_link_options(ptrt_build_options INTERFACE -fsanitize=${PTRT_SANITIZE})
endif()
if(PTRT_FUZZ)
  target_compile_options(ptrt_build_options INTERFACE -fsanitize=fuzzer-no-link)
endif()

# ptrt_precompiled(NAME HEADERS... LIBRARIES ...): a target that ptrt_uses_precompiled() can name.
set(std_headers <algorithm> <array> <atomic> <cstdint> <cstring> <functional> <limits> <map> <memory> <mutex> <optional>
  <span> <stdexcept> <string> <string_view> <unordered_map> <utility> <vector> <fmt/format.h>)
function(ptrt_precompiled name)
  cmake_parse_arguments(arg "" "" "HEADERS;LIBRARIES" ${ARGN})
  if(PTRT_PRECOMPILE)
    file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/${name}.cpp CONTENT "// Nothing: ${name} is a precompiled header.\n")
    add_library(${name} OBJECT ${CMAKE_BINARY_DIR}/${name}.cpp)
    target_link_libraries(${name} PRIVATE fmt::fmt ptrt_build_options ${arg_LIBRARIES})
    target_precompile_headers(${name} PRIVATE ${std_headers} ${arg_HEADERS})
  endif()
endfunction()

# Presets with sanitizers may compile without optimisation, which halves the time. These targets compute most of the tests'
# results, and would take longer to run than that saves.
set(computing_targets ptrt_kernels ptrt_cuda_emulated)
function(ptrt_uses_precompiled target name)
  set(computes FALSE)
  if(PTRT_SANITIZE AND target IN_LIST computing_targets)
    set(computes TRUE)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-O1>)
  endif()
  if(PTRT_PRECOMPILE)
    if(computes)  # a precompiled header is for one set of flags
      target_precompile_headers(${target} PRIVATE ${std_headers})
    else()
      target_precompile_headers(${target} REUSE_FROM ${name})
    endif()
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)
  endif()
endfunction()

# ptrt_compile_together(TARGET GROUP SOURCES...): compiles sources as one that spend their time in the same large header.
# As with precompiled headers, other build types compile each by itself and find a missing include.
function(ptrt_compile_together target group)
  if(PTRT_PRECOMPILE)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
    set_source_files_properties(${ARGN} PROPERTIES UNITY_GROUP ${group})
  endif()
endfunction()

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
  ptrt_uses_precompiled(ptrt_${name} ptrt_std_headers)
endfunction()
