#include "kernels/cuda/host/device_memory.h"

#include <atomic>

#include "kernels/base/error.h"
#include "kernels/cuda/base/cuda_check.h"

namespace ptrt {
namespace {

std::atomic<bool> left{false};

// An error of cudaFree() was reported by an earlier call; a destructor cannot report it.
void free_device(std::byte* data) {
  if (!left) cudaFree(data);
}
void free_pinned(std::byte* data) {
  if (!left) cudaFreeHost(data);
}

}  // namespace

void leave_device_memory() noexcept {
  left = true;
}
bool device_memory_left() noexcept {
  return left;
}

DeviceBytes device_bytes() {
  DeviceBytes bytes;
  PTRT_CUDA_CHECK(cudaMemGetInfo(&bytes.free, &bytes.total));
  return bytes;
}

DevicePointer<std::byte> allocate_device(std::size_t bytes, const std::string& what) {
  if (bytes == 0) return nullptr;
  constexpr double kMiB = 1 << 20;
  const DeviceBytes memory = device_bytes();
  if (bytes > memory.free)
    throw_failure("not enough device memory for {}: {} bytes ({:.1f} MiB) wanted, {:.1f} of {:.1f} MiB free",
                  what, bytes, static_cast<double>(bytes) / kMiB, static_cast<double>(memory.free) / kMiB,
                  static_cast<double>(memory.total) / kMiB);
  void* data = nullptr;
  PTRT_CUDA_CHECK(cudaMalloc(&data, bytes));
  return {static_cast<std::byte*>(data), free_device};
}

std::shared_ptr<std::byte[]> allocate_pinned(std::size_t bytes, const std::string& what) {
  void* data = nullptr;
  if (cudaMallocHost(&data, bytes == 0 ? 1 : bytes) != cudaSuccess)
    throw_failure("not enough pinned host memory for {}: {} bytes wanted", what, bytes);
  return {static_cast<std::byte*>(data), free_pinned};
}

Stream::Stream() {
  PTRT_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}
Stream::~Stream() {
  if (!left) cudaStreamDestroy(stream_);
}
void Stream::wait() const {
  PTRT_CUDA_CHECK(cudaStreamSynchronize(stream_));
}

Event::Event() {
  PTRT_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
}
Event::~Event() {
  if (!left) cudaEventDestroy(event_);
}
void Event::record(const Stream& stream) {
  PTRT_CUDA_CHECK(cudaEventRecord(event_, stream.get()));
}
void Event::wait() const {
  PTRT_CUDA_CHECK(cudaEventSynchronize(event_));
}

}  // namespace ptrt
