#include "kernels/cuda/host/step_graph.h"

#include <algorithm>

#include "kernels/cuda/base/cuda_check.h"

namespace ptrt::cuda {
namespace {

// Ends the recording also after an exception: a stream that is still recording accepts no work.
class Recording {
 public:
  Recording(const Stream& stream, ReplayClock& clock, RecordedEvents& events)
      : stream_(stream), clock_(clock) {
    PTRT_CUDA_CHECK(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
    clock_.set_recording(&events);
  }
  ~Recording() {
    clock_.set_recording(nullptr);
    if (open_) cudaStreamEndCapture(stream_.get(), &graph_);  // during an exception
    if (graph_ != nullptr && !device_memory_left()) cudaGraphDestroy(graph_);
  }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  cudaGraph_t end() {
    open_ = false;
    PTRT_CUDA_CHECK(cudaStreamEndCapture(stream_.get(), &graph_));
    return graph_;
  }

 private:
  const Stream& stream_;
  ReplayClock& clock_;
  cudaGraph_t graph_ = nullptr;
  bool open_ = true;
};

}  // namespace

StepGraph::StepGraph(const Stream& stream, ReplayClock& clock, const std::function<void()>& ops) {
  const auto events = std::make_shared<RecordedEvents>();
  Recording recording(stream, clock, *events);
  events->mark_step_start(stream);
  ops();
  PTRT_CUDA_CHECK(cudaGraphInstantiateWithFlags(&graph_, recording.end(), 0));
  events_ = events;
}

StepGraph::~StepGraph() {
  if (!device_memory_left()) cudaGraphExecDestroy(graph_);
}

void StepGraph::launch(const Stream& stream) const {
  PTRT_CUDA_CHECK(cudaGraphLaunch(graph_, stream.get()));
}

bool StepGraphs::run(const Key& key, const Stream& stream, ReplayClock& clock,
                     const std::function<void()>& ops) {
  const auto [entry, is_new] = graphs_.try_emplace(key);
  if (is_new) {
    ops();
    return true;
  }
  std::unique_ptr<StepGraph>& graph = entry->second[clock.buffer()];
  const bool record = graph == nullptr;
  if (record) graph = std::make_unique<StepGraph>(stream, clock, ops);
  clock.before_launch();
  graph->launch(stream);
  clock.launched(graph->events(), record);
  return record;
}

std::size_t StepGraphs::recorded() const {
  std::size_t count = 0;
  for (const auto& [key, graphs] : graphs_)
    count +=
        static_cast<std::size_t>(std::ranges::count_if(graphs, [](const auto& g) { return g != nullptr; }));
  return count;
}

}  // namespace ptrt::cuda
