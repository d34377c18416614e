// What a fuzz target implements. Two mains run it: libFuzzer's, in a build with PTRT_FUZZ, and that of plain_main.cpp.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "driver/random.h"

namespace ptrt::fuzz {

// Runs one input. A wrong answer is told with fail(); an exception that leaves it is one too.
void run_input(std::string_view input);

// A changed input, most of the time one that gets past the parser.
std::string mutate_input(std::string input, Random& random);

// Prints what is wrong and ends the process; the main writes the input to a file.
[[noreturn]] void fail(const std::string& what);

template <typename... Args>
void expect(bool right, fmt::format_string<Args...> format, Args&&... args) {
  if (!right) fail(fmt::format(format, std::forward<Args>(args)...));
}

// Changes to bytes that know nothing of their meaning. With libFuzzer: its own, which follow the comparisons it sees.
std::string mutate_bytes(std::string input, Random& random);

}  // namespace ptrt::fuzz
