// Progress of a batch on rank 0's standard error: a bar on a terminal, else a plain line every few seconds.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace ptrt {

class Progress {
 public:
  // `done` of `total` were finished by an earlier run. Shows nothing when `quiet`.
  Progress(std::int64_t total, std::int64_t done, bool quiet);
  void advance();
  void end();  // the last line; call once all is done

 private:
  void show(bool last);

  std::int64_t total_, done_, done_before_;
  bool quiet_, terminal_;
  std::chrono::steady_clock::time_point start_, shown_;
};

}  // namespace ptrt
