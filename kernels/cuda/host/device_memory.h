// RAII owners of device memory, pinned host memory, streams and events. All throw if the device has
// none left.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>

namespace ptrt {

// Frees with cudaFree; device memory, 256-byte aligned. An empty request gives a null pointer.
template <typename T>
using DevicePointer = std::shared_ptr<T[]>;

// Uninitialised device memory. Checks the free memory first, so that the error message contains
// `what` and both sizes.
DevicePointer<std::byte> allocate_device(std::size_t bytes, const std::string& what);

// From now on nothing of the device is given back: work is queued that may never end (a collective whose other ranks are
// gone), and cudaFree() waits for all work, as other ends may. For a process that is about to end without exit handlers.
void leave_device_memory() noexcept;
// Whether that was called. Every destructor asks it that gives back memory, a stream, an event, a graph or a handle.
bool device_memory_left() noexcept;

// An uninitialised array of trivially copyable values in device memory.
template <typename T>
DevicePointer<T> allocate_device_array(std::size_t count, const std::string& what) {
  const DevicePointer<std::byte> bytes = allocate_device(count * sizeof(T), what);
  return {bytes, reinterpret_cast<T*>(bytes.get())};
}

// Pinned host memory, for asynchronous copies.
std::shared_ptr<std::byte[]> allocate_pinned(std::size_t bytes, const std::string& what);

class Stream {
 public:
  Stream();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }
  void wait() const;  // until all work queued so far has run

 private:
  cudaStream_t stream_ = nullptr;
};

// A point in a stream that the host can wait for; without timing.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(const Stream& stream);
  void wait() const;  // returns at once if nothing was recorded

 private:
  cudaEvent_t event_ = nullptr;
};

struct DeviceBytes {
  std::size_t free = 0, total = 0;
};
DeviceBytes device_bytes();  // of the current device

}  // namespace ptrt
