#include "launch/job/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "kernels/base/progress.h"
#include "launch/job/standard_streams.h"

namespace ptrt {
namespace {

constexpr auto kRedraw = std::chrono::milliseconds(100);  // of the bar
constexpr auto kNextLine = std::chrono::seconds(5);       // of the plain lines

std::string clock_text(double seconds) {
  const auto s = static_cast<long>(std::llround(seconds));
  return s >= 3600 ? fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
                   : fmt::format("{:02}:{:02}", s / 60, s % 60);
}

}  // namespace

Progress::Progress(std::int64_t total, std::int64_t done, bool quiet)
    : total_(total),
      done_(done),
      done_before_(done),
      quiet_(quiet),
      terminal_(isatty(STDERR_FILENO) == 1),
      start_(std::chrono::steady_clock::now()),
      shown_(start_) {}

void Progress::advance() {
  note_progress();
  done_++;
  if (std::chrono::steady_clock::now() - shown_ >=
      (terminal_ ? std::chrono::milliseconds(kRedraw) : kNextLine))
    show(false);
}

void Progress::end() {
  show(true);
}

void Progress::show(bool last) {
  if (quiet_) return;
  shown_ = std::chrono::steady_clock::now();
  const double elapsed = std::chrono::duration<double>(shown_ - start_).count();
  const double rate = elapsed > 0 ? static_cast<double>(done_ - done_before_) / elapsed : 0;
  const std::string left = rate > 0 ? clock_text(static_cast<double>(total_ - done_) / rate) : "?";
  const std::int64_t percent = total_ > 0 ? 100 * done_ / total_ : 100;
  std::string bar;
  if (terminal_) {
    constexpr std::int64_t kWidth = 24;
    const std::int64_t filled = total_ > 0 ? kWidth * done_ / total_ : kWidth;
    for (std::int64_t i = 0; i < kWidth; i++) bar += i < filled ? "█" : "░";
    bar += " | ";
  }
  say(fmt::format("{}Running batch: {:3}% Completed | {}{}/{} [{}<{}, {:.2f} req/s]{}",
                  terminal_ ? "\r\033[K" : "", percent, bar, done_, total_, clock_text(elapsed), left, rate,
                  terminal_ && !last ? "" : "\n"));
}

}  // namespace ptrt
