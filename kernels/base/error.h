// Errors of every layer. Library code throws; only main() catches, prints and ends the job.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace ptrt {

// What the process reports to its caller (exit status: docs/SPEC.md, The command line).
enum class ExitCode : int {
  ok = 0,
  failure = 1,    // something failed while running
  bad_input = 2,  // bad usage, model file or request file
  stopped = 75,   // ended in order by a signal; --resume continues (EX_TEMPFAIL of sysexits.h)
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const noexcept { return code_; }

 private:
  ExitCode code_;
};

// Call inside a catch block: the exception in flight as an Error. Those of the standard library get plain
// words: what ran out, or the file and the reason.
Error current_error();

// A bad model file, request file or command line: exit status 2. Name the file, the key, what was
// expected and found.
template <typename... Args>
[[noreturn]] void throw_bad_input(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ExitCode::bad_input, fmt::format(format, std::forward<Args>(args)...));
}

// A failure while running (a broken invariant, a full disk, a lost rank): exit status 1.
template <typename... Args>
[[noreturn]] void throw_failure(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ExitCode::failure, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace ptrt

// An invariant of the program itself; a broken one is a bug and is reported with its place in the
// source.
#define PTRT_CHECK(condition)                                                                      \
  do {                                                                                             \
    if (!(condition))                                                                              \
      ::ptrt::throw_failure("internal check failed: {} at {}:{}", #condition, __FILE__, __LINE__); \
  } while (false)
