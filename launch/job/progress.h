// Progress of a batch on rank 0's standard error: a bar on a terminal, else a plain line now and then.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace ptrt {

// How the progress of a batch is shown.
struct ProgressStyle {
  bool shown = true;
  // A plain line every so many seconds, 0: after every result; none: a bar on a terminal, elsewhere a line a minute.
  std::optional<double> log_every_s;
};

// Where progress is shown, and by which clock; tests have their own.
struct ProgressOutput {
  std::function<void(const std::string&)> print;
  bool terminal = false;
  std::function<std::chrono::steady_clock::time_point()> now = std::chrono::steady_clock::now;
};

ProgressOutput progress_on_stderr();

class Progress {
 public:
  // `done` of `total` were finished by an earlier run. No total: it is not known.
  Progress(std::optional<std::int64_t> total, std::int64_t done, const ProgressStyle& style,
           ProgressOutput output = progress_on_stderr());
  void advance();
  void end();  // the last line; call once all is done

 private:
  void show(bool last);

  std::optional<std::int64_t> total_;
  std::int64_t done_, done_before_;
  ProgressOutput output_;
  bool shown_, bar_;
  std::chrono::steady_clock::duration interval_;
  std::chrono::steady_clock::time_point start_, last_shown_;
};

}  // namespace ptrt
