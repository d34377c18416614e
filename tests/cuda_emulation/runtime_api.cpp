// The CUDA runtime functions that the backend calls, for one emulated device: memory is the host's
// heap (of exactly the requested size, for AddressSanitizer), streams run when they are waited for.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda_emulation/execution.h"
#include "cuda_emulation/stream.h"

// The objects behind the runtime's handles.
struct CUstream_st {
  std::deque<std::function<void()>> work;
  std::uint64_t queued = 0;  // pieces of work so far, including those done
  struct CUgraph_st* recording = nullptr;

  std::uint64_t done() const { return queued - work.size(); }
};
struct CUevent_st {
  CUstream_st* stream = nullptr;                 // null: nothing was recorded
  std::uint64_t after = 0;                       // pieces of the stream's work
  std::chrono::steady_clock::time_point passed;  // when the stream's work reached it
};
// A node is either work or an event that every launch records.
struct GraphNode {
  std::function<void()> work;
  cudaEvent_t event = nullptr;
};
struct CUgraph_st {
  std::vector<GraphNode> nodes;
};
struct CUgraphExec_st {
  std::vector<GraphNode> nodes;
};

namespace {

// Per thread: each uses its own streams.
thread_local std::vector<CUstream_st*> streams;
thread_local bool records = false;
thread_local std::uint64_t launches = 0;  // of graphs
thread_local std::uint64_t kernels = 0;
thread_local std::unordered_map<std::string, std::uint64_t> late;
std::span<const std::byte> written_before;
thread_local const char* triggered_kernel = nullptr;  // that ran last, if it triggered early

// Runs the stream's work until `after` of all queued pieces are done.
void run(CUstream_st& stream, std::uint64_t after) {
  while (!stream.work.empty() && stream.done() < after) {
    const std::function<void()> next = std::move(stream.work.front());
    stream.work.pop_front();
    try {
      next();
    } catch (...) {
      stream.work.clear();  // the device does nothing after an error
      throw;
    }
  }
}

// cudaFree() and similar functions wait for the device. Destructors call them, so no error may
// escape.
void run_everything() {
  try {
    for (CUstream_st* stream : streams) run(*stream, stream->queued);
  } catch (const ptrt::emulation::CollectiveAborted&) {
    // already known to the caller of abort()
  } catch (const std::exception& error) {
    std::fprintf(stderr, "emulated device, while memory is freed: %s\n", error.what());
    std::abort();
  }
}

bool is_pending(cudaEvent_t event) {
  return event->stream != nullptr && event->stream->done() < event->after;
}

constexpr std::size_t kDeviceBytes = std::size_t{4} << 30;

// The allocated device memory, over all threads.
class AllocatedBytes {
 public:
  void add(void* pointer, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    blocks_[pointer] = bytes;
    sum_ += bytes;
  }
  void remove(void* pointer) {
    const std::lock_guard lock(mutex_);
    const auto block = blocks_.find(pointer);
    if (block == blocks_.end()) return;  // host memory
    sum_ -= block->second;
    blocks_.erase(block);
  }
  std::size_t sum() const {
    const std::lock_guard lock(mutex_);
    return sum_;
  }

 private:
  mutable std::mutex mutex_;
  std::unordered_map<void*, std::size_t> blocks_;
  std::size_t sum_ = 0;
} allocated;

// Uninitialised device memory reads as NaN, until it is set.
cudaError_t allocate(void** pointer, std::size_t bytes) {
  if (posix_memalign(pointer, 256, bytes) != 0) return cudaErrorMemoryAllocation;
  std::memset(*pointer, 0xFF, bytes);
  return cudaSuccess;
}

}  // namespace

namespace ptrt::emulation {

void submit(cudaStream_t stream, std::function<void()> work) {
  if (stream == nullptr) return work();
  if (stream->recording != nullptr) return stream->recording->nodes.push_back({std::move(work), nullptr});
  stream->work.push_back(std::move(work));
  stream->queued++;
}

std::uint64_t graph_launches() {
  return launches;
}
std::uint64_t kernel_launches() {
  return kernels;
}
void count_kernel_launch() {
  kernels++;
}

void note_kernel(const char* name, bool triggered_early) {
  triggered_kernel = triggered_early ? name : nullptr;
  if (!triggered_early) late[name]++;
}
std::uint64_t late_kernels(const std::string& name) {
  return late[name];
}

void set_written_before(const void* data, std::size_t bytes) {
  written_before = {static_cast<const std::byte*>(data), bytes};
}

void check_early_copy(const void* from, std::size_t bytes) {
  const auto* first = static_cast<const std::byte*>(from);
  if (first < written_before.data() + written_before.size() && first + bytes > written_before.data())
    throw std::runtime_error("a thread copies before it has waited what the kernel before may still write");
}

void note_full_edge() {
  triggered_kernel = nullptr;
}

void check_not_overtaking(const char* what) {
  if (triggered_kernel != nullptr)
    throw std::runtime_error(std::string(what) + " may start before kernel " + triggered_kernel +
                             " has ended, which triggered its successor early");
}

}  // namespace ptrt::emulation

namespace {

void record(cudaEvent_t event, cudaStream_t stream) {
  ptrt::emulation::submit(stream, [event] { event->passed = std::chrono::steady_clock::now(); });
  event->stream = stream;
  event->after = stream->queued;
}

}  // namespace

extern "C" {

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "an emulated error";
}
cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int) {
  const auto& device = ptrt::emulation::emulated_device();
  const auto found = [&]() -> std::optional<std::size_t> {
    switch (name) {
      case cudaDevAttrMultiProcessorCount:
        return device.multiprocessors;
      case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        return device.shared_bytes;
      case cudaDevAttrComputeCapabilityMajor:
        return device.major;
      case cudaDevAttrComputeCapabilityMinor:
        return device.minor;
      default:
        return std::nullopt;
    }
  }();
  if (!found) return cudaErrorInvalidValue;
  *value = static_cast<int>(*found);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = kDeviceBytes;
  *free = kDeviceBytes - std::min(kDeviceBytes, allocated.sum());
  return cudaSuccess;
}
// Neither allocation nor waiting is allowed while capturing, nor asking what has passed.
cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  if (records) return cudaErrorStreamCaptureUnsupported;
  const cudaError_t status = allocate(pointer, bytes);
  if (status == cudaSuccess) allocated.add(*pointer, bytes);
  return status;
}
cudaError_t cudaMallocHost(void** pointer, std::size_t bytes) {
  return records ? cudaErrorStreamCaptureUnsupported : allocate(pointer, bytes);
}
cudaError_t cudaFree(void* pointer) {
  run_everything();
  allocated.remove(pointer);
  std::free(pointer);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* pointer) {
  return cudaFree(pointer);
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  ptrt::emulation::submit(stream, [=] {
    std::memset(to, value, bytes);
    ptrt::emulation::note_full_edge();
  });
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  ptrt::emulation::submit(stream, [=] {
    std::memcpy(to, from, bytes);
    ptrt::emulation::note_full_edge();
  });
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = streams.emplace_back(new CUstream_st);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  run_everything();
  std::erase(streams, stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream->recording != nullptr) return cudaErrorStreamCaptureUnsupported;
  run(*stream, stream->queued);
  return cudaSuccess;
}
// Time passes between two calls: all is done.
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return cudaStreamSynchronize(stream);
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  run_everything();
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream->recording != nullptr ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  run_everything();
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (stream->recording != nullptr) return cudaErrorStreamCaptureUnsupported;  // nobody could wait for it
  record(event, stream);
  return cudaSuccess;
}
// External events are only for streams that are being captured.
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  if (flags == cudaEventRecordDefault) return cudaEventRecord(event, stream);
  if (flags != cudaEventRecordExternal || stream->recording == nullptr) return cudaErrorInvalidValue;
  stream->recording->nodes.push_back({nullptr, event});
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (records) return cudaErrorStreamCaptureUnsupported;
  return is_pending(event) ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  for (const cudaEvent_t event : {from, to})
    if (event->stream == nullptr) return cudaErrorInvalidResourceHandle;
  for (const cudaEvent_t event : {from, to})
    if (is_pending(event)) return cudaErrorNotReady;
  *milliseconds = std::chrono::duration<float, std::milli>(to->passed - from->passed).count();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (records) return cudaErrorStreamCaptureUnsupported;
  if (event->stream != nullptr) run(*event->stream, event->after);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (records) return cudaErrorIllegalState;
  stream->recording = new CUgraph_st;
  records = true;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (stream->recording == nullptr) return cudaErrorIllegalState;
  *graph = stream->recording;
  stream->recording = nullptr;
  records = false;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new CUgraphExec_st{graph->nodes};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  launches++;
  for (const GraphNode& node : exec->nodes)
    if (node.event != nullptr)
      record(node.event, stream);
    else
      ptrt::emulation::submit(stream, node.work);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  run_everything();
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

}  // extern "C"
