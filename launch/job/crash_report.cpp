#include "launch/job/crash_report.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstddef>
#include <iterator>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

struct Reported {
  int number;
  const char* what;
};
constexpr Reported kSignals[] = {
    {SIGBUS,
     "a mapped model file could not be read: an I/O error, or it was truncated while in use "
     "(or /dev/shm is full)"},
    {SIGSEGV, "crashed: segmentation fault (signal 11)"},
    {SIGFPE, "crashed: arithmetic exception (signal 8)"},
    {SIGILL, "crashed: illegal instruction (signal 4)"},
    {SIGABRT, "crashed: aborted (signal 6)"},
};

// Formatted beforehand: a handler may only write.
struct Line {
  char text[512];
  std::size_t bytes = 0;
};
using Lines = std::array<Line, std::size(kSignals)>;
Lines g_lines[2];  // one in use, one for the next name
std::atomic<const Lines*> g_current{nullptr};
std::atomic<int> g_log_file{-1};
static_assert(std::atomic<const Lines*>::is_always_lock_free && std::atomic<int>::is_always_lock_free,
              "read in a signal handler");

void write_line(int number) {
  const Lines* lines = g_current.load(std::memory_order_acquire);
  for (std::size_t i = 0; i < std::size(kSignals); i++)
    if (kSignals[i].number == number && lines != nullptr) {
      for (const int file : {STDERR_FILENO, g_log_file.load()})
        if (file >= 0) {
          [[maybe_unused]] const ssize_t written = write(file, (*lines)[i].text, (*lines)[i].bytes);
        }
    }
}

void end_with_report(int number) {
  write_line(number);
  _exit(static_cast<int>(ExitCode::failure));
}

// The action is the default one again (SA_RESETHAND), and the signal is not blocked (SA_NODEFER).
void report_crash(int number) {
  write_line(number);
  raise(number);
}

// So that a stack that has overflowed is reported too; of the first thread.
void use_alternate_stack() {
  alignas(16) static char memory[64 << 10];
  stack_t stack = {};
  stack.ss_sp = memory;
  stack.ss_size = sizeof memory;
  stack_t before = {};
  if (sigaltstack(nullptr, &before) == 0 && (before.ss_flags & SS_DISABLE) != 0) sigaltstack(&stack, nullptr);
}

}  // namespace

void install_crash_handlers(const std::string& who) {
  name_in_crash_reports(who);
  use_alternate_stack();
  for (const Reported& reported : kSignals) {
    struct sigaction action = {}, before = {};
    action.sa_handler = reported.number == SIGBUS ? end_with_report : report_crash;
    action.sa_flags = SA_ONSTACK | SA_RESETHAND | SA_NODEFER;
    sigaction(reported.number, nullptr, &before);
    if (reported.number == SIGBUS || before.sa_handler == SIG_DFL)
      sigaction(reported.number, &action, nullptr);
  }
  std::signal(SIGXFSZ, SIG_IGN);
}

void name_in_crash_reports(const std::string& who) {
  const Lines* current = g_current.load(std::memory_order_relaxed);
  Lines& next = current == &g_lines[0] ? g_lines[1] : g_lines[0];
  for (std::size_t i = 0; i < std::size(kSignals); i++) {
    const std::string line =
        fmt::format("ptrt: {}{}error: {}\n", who, who.empty() ? "" : ": ", kSignals[i].what);
    next[i].bytes = line.copy(next[i].text, sizeof next[i].text - 1);
  }
  g_current.store(&next, std::memory_order_release);
}

void also_report_crashes_to(int file) {
  g_log_file = file;
}

}  // namespace ptrt
