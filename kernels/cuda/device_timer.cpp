#include "kernels/cuda/device_timer.h"

#include "kernels/cuda/cuda_check.h"

namespace ptrt::cuda {
namespace {

// More than the syncs of several steps, so that the oldest has long happened when its pair is needed again.
constexpr std::size_t kPairs = 2048;

bool is_recorded(const Stream& stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  PTRT_CUDA_CHECK(cudaStreamIsCapturing(stream.get(), &status));
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace

EventTimer::EventTimer(const Stream& stream) : stream_(stream), ring_(kPairs) {
  for (Pair& pair : ring_) {
    PTRT_CUDA_CHECK(cudaEventCreateWithFlags(&pair.begin, cudaEventDefault));
    PTRT_CUDA_CHECK(cudaEventCreateWithFlags(&pair.end, cudaEventDefault));
  }
}

EventTimer::~EventTimer() {
  for (const Pair& pair : ring_) {
    cudaEventDestroy(pair.begin);
    cudaEventDestroy(pair.end);
  }
}

void EventTimer::begin() {
  open_ = !is_recorded(stream_);
  if (!open_) return;
  if (begun_ - taken_ == ring_.size()) take_oldest(true);
  PTRT_CUDA_CHECK(cudaEventRecord(pair(begun_).begin, stream_.get()));
}

void EventTimer::end() {
  if (!open_) return;
  PTRT_CUDA_CHECK(cudaEventRecord(pair(begun_).end, stream_.get()));
  begun_++;
  open_ = false;
}

bool EventTimer::take_oldest(bool wait) {
  const Pair& oldest = pair(taken_);
  if (wait) {
    PTRT_CUDA_CHECK(cudaEventSynchronize(oldest.end));
  } else {
    const cudaError_t status = cudaEventQuery(oldest.end);
    if (status == cudaErrorNotReady) return false;
    check_cuda(status, "cudaEventQuery", __FILE__, __LINE__);
  }
  float milliseconds = 0;
  PTRT_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, oldest.begin, oldest.end));
  seconds_ += 1e-3 * static_cast<double>(milliseconds);
  taken_++;
  return true;
}

double EventTimer::take_seconds(bool wait) {
  while (taken_ < begun_ && take_oldest(wait)) {
  }
  const double taken = seconds_;
  seconds_ = 0;
  return taken;
}

}  // namespace ptrt::cuda
