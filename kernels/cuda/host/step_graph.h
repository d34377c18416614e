// Steps captured as CUDA graphs and replayed: a decode step is hundreds of small kernels, which the
// host would launch more slowly than the device runs them.
//
// A recorded step consists of kernels and copies in one stream, with arguments that do not change
// from step to step (the step's inputs are at fixed addresses, step_input.h). It must not wait or
// allocate.
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
  // Records what `ops` queue in the stream, with events for the clock; nothing runs.
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
  // What a step's launches depend on: the caller's key, and the backend's own.
  using Key = std::pair<std::int64_t, std::int64_t>;

  // Calls `ops` the first time a key is used, so that one-time work (loading kernels, cuBLASLt
  // heuristics) is not done while recording. Afterwards replays the graph for the key and the
  // clock's buffer(); records it first if there is none. Returns whether `ops` was called.
  bool run(const Key& key, const Stream& stream, ReplayClock& clock, const std::function<void()>& ops);
  std::size_t recorded() const;
  void clear() noexcept { graphs_.clear(); }

 private:
  using Graphs = std::array<std::unique_ptr<StepGraph>, ReplayClock::kBuffers>;  // null: not recorded
  std::map<Key, Graphs> graphs_;
};

}  // namespace ptrt::cuda
