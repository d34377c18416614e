#include "launch/job/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <string>
#include <utility>

#include "kernels/base/progress.h"
#include "launch/job/standard_streams.h"

namespace ptrt {
namespace {

constexpr auto kRedraw = std::chrono::milliseconds(100);  // of the bar
constexpr double kLogEveryS = 60;                         // of plain lines, where no interval is asked for

std::string clock_text(double seconds) {
  const auto s = static_cast<long>(std::llround(seconds));
  return s >= 3600 ? fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
                   : fmt::format("{:02}:{:02}", s / 60, s % 60);
}

}  // namespace

ProgressOutput progress_on_stderr() {
  return {say, isatty(STDERR_FILENO) == 1};
}

Progress::Progress(std::optional<std::int64_t> total, std::int64_t done, const ProgressStyle& style,
                   ProgressOutput output)
    : total_(total),
      done_(done),
      done_before_(done),
      output_(std::move(output)),
      shown_(style.shown),
      bar_(output_.terminal && !style.log_every_s),
      interval_(bar_ ? kRedraw
                     : std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                           std::chrono::duration<double>(style.log_every_s.value_or(kLogEveryS)))),
      start_(output_.now()),
      last_shown_(start_) {}

void Progress::advance() {
  note_progress();
  done_++;
  if (output_.now() - last_shown_ >= interval_) show(false);
}

void Progress::end() {
  show(true);
}

void Progress::show(bool last) {
  if (!shown_) return;
  last_shown_ = output_.now();
  const double elapsed = std::chrono::duration<double>(last_shown_ - start_).count();
  const double rate = elapsed > 0 ? static_cast<double>(done_ - done_before_) / elapsed : 0;
  if (!total_) {
    output_.print(fmt::format("{}Running batch: {} done [{}, {:.2f} req/s]{}", bar_ ? "\r\033[K" : "", done_,
                              clock_text(elapsed), rate, bar_ && !last ? "" : "\n"));
    return;
  }
  const std::int64_t total = *total_;
  const std::string left = rate > 0 ? clock_text(static_cast<double>(total - done_) / rate) : "?";
  const std::int64_t percent = total > 0 ? 100 * done_ / total : 100;
  std::string bar;
  if (bar_) {
    constexpr std::int64_t kWidth = 24;
    const std::int64_t filled = total > 0 ? kWidth * done_ / total : kWidth;
    for (std::int64_t i = 0; i < kWidth; i++) bar += i < filled ? "█" : "░";
    bar += " | ";
  }
  output_.print(fmt::format("{}Running batch: {:3}% Completed | {}{}/{} [{}<{}, {:.2f} req/s]{}",
                            bar_ ? "\r\033[K" : "", percent, bar, done_, total, clock_text(elapsed), left,
                            rate, bar_ && !last ? "" : "\n"));
}

}  // namespace ptrt
