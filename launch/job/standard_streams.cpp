#include "launch/job/standard_streams.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <utility>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

std::mutex g_log_mutex;
std::function<void(std::string_view)> g_log;

[[noreturn]] void output_failed() {
  throw_failure("cannot write to standard output: {}", std::strerror(errno));
}

}  // namespace

void open_standard_streams() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(descriptor, F_GETFD) >= 0 || errno != EBADF) continue;
    // Those below it are open, so it gets the lowest free number: its own. Without /dev nothing can be done.
    [[maybe_unused]] const int opened = open("/dev/null", descriptor == STDIN_FILENO ? O_WRONLY : O_RDONLY);
  }
}

void say(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
  note(text);
}

void set_log(std::function<void(std::string_view)> log) {
  const std::lock_guard lock(g_log_mutex);
  g_log = std::move(log);
}

void note(const std::string& text) {
  const std::lock_guard lock(g_log_mutex);
  if (g_log) g_log(text);
}

void write_output(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) output_failed();
}

void flush_output() {
  if (std::fflush(stdout) != 0) output_failed();
}

}  // namespace ptrt
