// Decode steps that a backend may record and replay. A replay runs none of the step's host code, so
// the counts of its all-reduces are added here.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "kernels/backend.h"
#include "runtime/sync/all_reduce.h"

namespace ptrt {

// Rows that a step of `rows` is padded to, so that few sizes are recorded: 1, 2, 4, 8 and multiples
// of 8, at most `most`.
std::int64_t recorded_rows(std::int64_t rows, std::int64_t most);

class StepRecorder {
 public:
  // `all_reduces`: those inside the steps; null entries are ignored.
  StepRecorder(Backend& backend, const std::vector<AllReduce*>& all_reduces);
  // The recorded steps are dropped before the all-reduces inside them: NCCL destroys a communicator
  // only once no graph contains a collective of it.
  ~StepRecorder() { backend_.drop_recorded(); }
  StepRecorder(const StepRecorder&) = delete;
  StepRecorder& operator=(const StepRecorder&) = delete;

  // Whether the backend records, and every all-reduce is work on the device alone.
  bool records() const { return records_; }
  // Runs the step of `ops`, which depend on the number of rows and on Backend::set_step_inputs()
  // alone, or replays it: false. A replay counts the sync points and bytes of the step as it was first run; the device
  // measures its time.
  bool run(std::int64_t rows, const std::function<void()>& ops);

 private:
  Backend& backend_;
  std::vector<AllReduce*> all_reduces_;
  bool records_;
  std::map<std::int64_t, std::vector<SyncStats>> counted_;  // by rows, of each all-reduce
};

}  // namespace ptrt
