// Device time of launches: a CUDA graph of them is replayed and timed by events, which excludes the
// host's part.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "kernels/cuda/base/cuda_check.h"

namespace ptrt {

class GraphTimer {
 public:
  explicit GraphTimer(cudaStream_t stream) : stream_(stream) {
    PTRT_CUDA_CHECK(cudaEventCreate(&begin_));
    PTRT_CUDA_CHECK(cudaEventCreate(&end_));
  }
  ~GraphTimer() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  GraphTimer(const GraphTimer&) = delete;
  GraphTimer& operator=(const GraphTimer&) = delete;

  // Microseconds per call of work(i), i = 0 … launches - 1, captured as one graph: the median of
  // `repeats` replays, after two that are not counted. `work` must only launch.
  double median_us(int launches, const std::function<void(int)>& work, int repeats = 9) {
    for (int i = 0; i < launches; i++) work(i);  // finds algorithms, loads kernels
    PTRT_CUDA_CHECK(cudaStreamSynchronize(stream_));
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t replay = nullptr;
    PTRT_CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < launches; i++) work(i);
    PTRT_CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
    PTRT_CUDA_CHECK(cudaGraphInstantiate(&replay, graph, 0));
    std::vector<double> times;
    for (int i = 0; i < repeats + 2; i++) {
      PTRT_CUDA_CHECK(cudaEventRecord(begin_, stream_));
      PTRT_CUDA_CHECK(cudaGraphLaunch(replay, stream_));
      PTRT_CUDA_CHECK(cudaEventRecord(end_, stream_));
      PTRT_CUDA_CHECK(cudaEventSynchronize(end_));
      float ms = 0;
      PTRT_CUDA_CHECK(cudaEventElapsedTime(&ms, begin_, end_));
      if (i >= 2) times.push_back(1e3 * ms / launches);
    }
    PTRT_CUDA_CHECK(cudaGraphExecDestroy(replay));
    PTRT_CUDA_CHECK(cudaGraphDestroy(graph));
    std::ranges::sort(times);
    return times[times.size() / 2];
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace ptrt
