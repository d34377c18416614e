// Standard input, output and error of the process, and what commands print.
#pragma once

#include <fmt/format.h>

#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace ptrt {

// Call first. A descriptor 0, 1 or 2 that is closed would go to the next file that is opened, and what is
// printed would land in it. So a closed one is opened on /dev/null, in the mode in which its use fails.
void open_standard_streams();

// Writes to standard error and ignores failures: a closed pipe or a full disk must not end the run.
void say(const std::string& text);

// What say() says goes there too from now on, and what note() does there alone. By any thread.
void set_log(std::function<void(std::string_view)> log);
void note(const std::string& text);

// Writes to standard output, which may hold it back until flush_output(). Both throw failure.
void write_output(const std::string& text);
void flush_output();

template <typename... Args>
void print_out(fmt::format_string<Args...> format, Args&&... args) {
  write_output(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace ptrt
