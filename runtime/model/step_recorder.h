// Decode steps that a backend may record and replay. A replayed step runs none of the host's code inside, so
// what its sums count is counted here.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "kernels/backend.h"
#include "runtime/sync/reduction.h"

namespace ptrt {

// Rows that a step of `rows` is filled up to, so that few sizes are recorded: 1, 2, 4, 8 and multiples of 8,
// at most `most`.
std::int64_t recorded_rows(std::int64_t rows, std::int64_t most);

class StepRecorder {
 public:
  // `reductions`: those inside the steps; null entries are left out.
  StepRecorder(Backend& backend, const std::vector<Reduction*>& reductions);
  // The recorded steps go before the reductions inside them: NCCL ends a communicator only once no graph
  // holds a collective of it.
  ~StepRecorder() { backend_.forget_recorded(); }
  StepRecorder(const StepRecorder&) = delete;
  StepRecorder& operator=(const StepRecorder&) = delete;

  // Whether the backend records, and every reduction is work on the device alone.
  bool records() const { return records_; }
  // Runs the step of `ops`, which hang on the number of rows and on what Backend::begin_step() was told. The
  // sync points and bytes of a replay are those of the step as it was run; the device tells its time.
  void run(std::int64_t rows, const std::function<void()>& ops);

 private:
  Backend& backend_;
  std::vector<Reduction*> reductions_;
  bool records_;
  std::map<std::int64_t, std::vector<SyncStats>> counted_;  // by rows, of each reduction
};

}  // namespace ptrt
