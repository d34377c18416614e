// Steps that are recorded once, as a CUDA graph, and queued again as one: a decode step is hundreds of small
// kernels, which the host would take longer to launch than the device to run.
//
// What a recorded step must keep to: kernels and copies of one stream, with arguments that do not change from
// step to step (the step's rows lie at fixed addresses, step_input.h), no waiting and no allocation.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>

#include "kernels/cuda/host/device_memory.h"
#include "kernels/cuda/host/replay_clock.h"

namespace ptrt::cuda {

class StepGraph {
 public:
  // Records what `ops` queue in the stream, with events of the clock's; nothing of it runs.
  StepGraph(const Stream& stream, ReplayClock& clock, const std::function<void()>& ops);
  ~StepGraph();
  StepGraph(const StepGraph&) = delete;
  StepGraph& operator=(const StepGraph&) = delete;
  void launch(const Stream& stream) const;
  const std::shared_ptr<const RecordedEvents>& events() const { return events_; }

 private:
  cudaGraphExec_t graph_ = nullptr;
  std::shared_ptr<const RecordedEvents> events_;
};

class StepGraphs {
 public:
  // What a step's launches hang on: the caller's key, and the backend's own.
  using Key = std::pair<std::int64_t, std::int64_t>;

  // Runs `ops` the first time a key comes, so that whatever is done once (loading kernels, looking up
  // algorithms of cuBLASLt) is not done while recording; after that queues the step recorded for the clock's
  // turn, without calling them where there is one. True when `ops` were called.
  bool run(const Key& key, const Stream& stream, ReplayClock& clock, const std::function<void()>& ops);
  std::size_t recorded() const;
  void clear() noexcept { graphs_.clear(); }

 private:
  using Turns = std::array<std::unique_ptr<StepGraph>, ReplayClock::kTurns>;  // null: not yet
  std::map<Key, Turns> graphs_;
};

}  // namespace ptrt::cuda
