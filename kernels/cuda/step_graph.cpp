#include "kernels/cuda/step_graph.h"

#include <algorithm>

#include "kernels/cuda/cuda_check.h"

namespace ptrt::cuda {
namespace {

// Ends the recording in any case: a stream that is left recording takes no work.
class Recording {
 public:
  explicit Recording(const Stream& stream) : stream_(stream) {
    PTRT_CUDA_CHECK(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
  }
  ~Recording() {
    if (open_) cudaStreamEndCapture(stream_.get(), &graph_);  // an error is on its way
    if (graph_ != nullptr) cudaGraphDestroy(graph_);
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
  cudaGraph_t graph_ = nullptr;
  bool open_ = true;
};

}  // namespace

StepGraph::StepGraph(const Stream& stream, const std::function<void()>& ops) {
  Recording recording(stream);
  ops();
  PTRT_CUDA_CHECK(cudaGraphInstantiateWithFlags(&graph_, recording.end(), 0));
}

StepGraph::~StepGraph() {
  cudaGraphExecDestroy(graph_);
}

void StepGraph::launch(const Stream& stream) const {
  PTRT_CUDA_CHECK(cudaGraphLaunch(graph_, stream.get()));
}

bool StepGraphs::run(const Key& key, const Stream& stream, const std::function<void()>& ops) {
  const auto [entry, is_new] = graphs_.try_emplace(key);
  if (is_new) {
    ops();
    return true;
  }
  std::unique_ptr<StepGraph>& graph = entry->second;
  const bool record = graph == nullptr;
  if (record) graph = std::make_unique<StepGraph>(stream, ops);
  graph->launch(stream);
  return record;
}

std::size_t StepGraphs::recorded() const {
  return static_cast<std::size_t>(
      std::ranges::count_if(graphs_, [](const auto& g) { return g.second != nullptr; }));
}

}  // namespace ptrt::cuda
