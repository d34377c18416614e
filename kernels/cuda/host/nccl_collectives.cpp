#include "kernels/cuda/host/nccl_collectives.h"

#include "kernels/base/error.h"

#ifndef PTRT_HAS_NCCL

namespace ptrt::cuda {

std::string nccl_missing() {
  return "this build has no NCCL (NCCL_HOME in Makefile.inc says where it is)";
}
int nccl_version() {
  return 0;
}
std::size_t nccl_id_bytes() {
  return 0;
}
std::string make_nccl_id() {
  throw_failure("{}", nccl_missing());
}
std::unique_ptr<DeviceCollectives> join_nccl(const std::string&, int, int, const Stream&) {
  throw_failure("{}", nccl_missing());
}

}  // namespace ptrt::cuda

#else

#include <nccl.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/cuda/base/cuda_check.h"

namespace ptrt::cuda {
namespace {

using Clock = std::chrono::steady_clock;

constexpr Clock::duration kJoinLimit = std::chrono::seconds(60);
// Queued calls take microseconds, joining a group takes seconds: polling spins first, then sleeps.
constexpr Clock::duration kSpinTime = std::chrono::milliseconds(2);
constexpr Clock::duration kPollInterval = std::chrono::milliseconds(1);
// Since NCCL 2.27 symmetric buffers can be registered; collectives on them have the lowest latency.
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0)
#define PTRT_NCCL_WINDOWS 1
#endif

[[noreturn]] void fail(ncclResult_t status, const char* call, ncclComm_t comm) {
  const char* detail = ncclGetLastError(comm);
  throw_failure("NCCL: {} in {}{}{}", ncclGetErrorString(status), call,
                detail != nullptr && *detail != '\0' ? ": " : "", detail != nullptr ? detail : "");
}

// Device memory and its allocator.
struct Buffer {
  void* data = nullptr;  // null: allocation failed
  bool of_nccl = false;

  static Buffer from_nccl(std::size_t bytes) {
    void* data = nullptr;
    if (ncclMemAlloc(&data, bytes) != ncclSuccess) return {};
    return {data, true};
  }
  static Buffer from_cuda(std::size_t bytes, const std::string& what) {
    void* data = nullptr;
    if (cudaMalloc(&data, bytes) != cudaSuccess)
      throw_failure("not enough device memory for {}: {} bytes wanted", what, bytes);
    return {data, false};
  }
  void free() const {
    if (data == nullptr) return;
    if (of_nccl)
      ncclMemFree(data);
    else
      cudaFree(data);
  }
};

class NcclCollectives final : public DeviceCollectives {
 public:
  NcclCollectives(const std::string& id, int rank, int size, const Stream& stream)
      : stream_(stream), rank_(rank), size_(size) {
    PTRT_CHECK(id.size() == sizeof(ncclUniqueId));
    ncclUniqueId unique;
    std::memcpy(&unique, id.data(), sizeof unique);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    const ncclResult_t status = ncclCommInitRankConfig(&comm_, size, unique, rank, &config);
    try {
      settle(status, "ncclCommInitRankConfig");
    } catch (...) {
      abort();
      throw;
    }
  }
  // Ranks leave a group after they all have the results of its last collective, so there is nothing
  // to wait for.
  ~NcclCollectives() override {
    abort();  // also releases the windows on the buffers
    for (const Buffer& buffer : buffers_) buffer.free();
  }

  int size() const override { return size_; }
  int rank() const override { return rank_; }
  std::string describe() const override {
    int version = 0;
    ncclGetVersion(&version);
    return fmt::format("NCCL {}.{}.{}{}", version / 10000, version / 100 % 100, version % 100,
                       windows_ && !buffers_.empty() ? ", symmetric memory" : "");
  }

  float* allocate(std::size_t count, const std::string& what) override {
    const std::size_t bytes = count * sizeof(float);
    Buffer buffer = Buffer::from_nccl(bytes);
    if (!everywhere(buffer.data != nullptr)) {
      buffer.free();
      buffer = Buffer::from_cuda(bytes, what);
    }
    buffers_.push_back(buffer);
    PTRT_CUDA_CHECK(cudaMemsetAsync(buffer.data, 0, bytes, stream_.get()));
    wait_for_stream();
    windows_ = windows_ && buffer.of_nccl && register_window(buffer.data, bytes);
    return static_cast<float*>(buffer.data);
  }

  void all_reduce(const float* send, float* recv, std::int64_t count) override {
    settle(ncclAllReduce(send, recv, static_cast<std::size_t>(count), ncclFloat32, ncclSum, comm_,
                         stream_.get()),
           "ncclAllReduce");
  }
  void all_gather(const float* send, float* recv, std::int64_t count) override {
    settle(ncclAllGather(send, recv, static_cast<std::size_t>(count), ncclFloat32, comm_, stream_.get()),
           "ncclAllGather");
  }

  std::string failure() override {
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) return "";
    ncclResult_t state = ncclSuccess;
    const ncclResult_t status = ncclCommGetAsyncError(comm_, &state);
    if (status == ncclSuccess && (state == ncclSuccess || state == ncclInProgress)) return "";
    const char* detail = ncclGetLastError(comm_);
    return fmt::format("NCCL: {}{}{}", ncclGetErrorString(status != ncclSuccess ? status : state),
                       detail != nullptr && *detail != '\0' ? ": " : "", detail != nullptr ? detail : "");
  }

  void abort() noexcept override {
    aborted_ = true;
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) return;
    ncclCommAbort(comm_);
    comm_ = nullptr;
  }

 private:
  // A non-blocking communicator may finish a call asynchronously on its own thread. The next call
  // and the end of a graph's recording must wait for that.
  void settle(ncclResult_t status, const char* call) {
    const auto start = Clock::now();
    // Some calls return success while still in progress (ncclCommWindowRegister of 2.28): check the
    // state.
    if (status == ncclSuccess) status = ncclInProgress;
    for (; status == ncclInProgress; pause(call, start)) {
      const std::lock_guard lock(mutex_);
      if (comm_ == nullptr || aborted_) throw_failure("NCCL: {} was given up", call);
      const ncclResult_t asked = ncclCommGetAsyncError(comm_, &status);
      if (asked != ncclSuccess) fail(asked, "ncclCommGetAsyncError", comm_);
    }
    if (status != ncclSuccess) fail(status, call, comm_);
  }
  void pause(const char* call, Clock::time_point start) const {
    const auto waited = Clock::now() - start;
    if (waited > kJoinLimit)
      throw_failure("NCCL: {} of rank {} of {} is not done after {} s: another rank has not called it", call,
                    rank_, size_, std::chrono::duration_cast<std::chrono::seconds>(kJoinLimit).count());
    if (waited < kSpinTime)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(kPollInterval);
  }
  // Called at start, before the watchdog monitors the rank.
  void wait_for_stream() const {
    const auto start = Clock::now();
    for (cudaError_t status = cudaErrorNotReady;; pause("the first collective", start)) {
      status = cudaStreamQuery(stream_.get());
      if (status == cudaErrorNotReady) continue;
      return check_cuda(status, "cudaStreamQuery", __FILE__, __LINE__);
    }
  }

  // Whether something holds on every rank of the group. Collective; waits.
  bool everywhere(bool here) {
    const DevicePointer<float> flag = allocate_device_array<float>(2, "a flag");
    const float mine = here ? 0.0f : 1.0f;
    float missing = 0;
    PTRT_CUDA_CHECK(cudaMemcpyAsync(flag.get(), &mine, sizeof mine, cudaMemcpyHostToDevice, stream_.get()));
    all_reduce(flag.get(), flag.get() + 1, 1);
    wait_for_stream();  // first, since cudaMemcpy() would wait without a time limit
    PTRT_CUDA_CHECK(cudaMemcpy(&missing, flag.get() + 1, sizeof missing, cudaMemcpyDeviceToHost));
    return missing == 0;
  }

#ifdef PTRT_NCCL_WINDOWS
  // The communicator owns the window. If the ranks cannot share one, NCCL succeeds without a
  // window; after an error the communicator is unusable.
  bool register_window(void* data, std::size_t bytes) {
    ncclWindow_t window = nullptr;
    settle(ncclCommWindowRegister(comm_, data, bytes, &window, NCCL_WIN_COLL_SYMMETRIC),
           "ncclCommWindowRegister (NCCL_WIN_ENABLE=0 does without)");
    return everywhere(window != nullptr);
  }
#else
  bool register_window(void*, std::size_t) {
    return false;
  }
#endif

  const Stream& stream_;
  int rank_, size_;
  ncclComm_t comm_ = nullptr;
  std::vector<Buffer> buffers_;
  bool windows_ = true;  // on every buffer
  std::atomic<bool> aborted_{false};
  std::mutex mutex_;  // protects comm_: used by the rank's thread and the watchdog's
};

}  // namespace

std::string nccl_missing() {
  return nccl_version() > 0 ? "" : "NCCL does not report its version";
}
int nccl_version() {
  int version = 0;
  return ncclGetVersion(&version) == ncclSuccess ? version : 0;
}
std::size_t nccl_id_bytes() {
  return sizeof(ncclUniqueId);
}
std::string make_nccl_id() {
  ncclUniqueId id;
  const ncclResult_t status = ncclGetUniqueId(&id);
  if (status != ncclSuccess) fail(status, "ncclGetUniqueId", nullptr);
  return {reinterpret_cast<const char*>(&id), sizeof id};
}
std::unique_ptr<DeviceCollectives> join_nccl(const std::string& id, int rank, int size,
                                             const Stream& stream) {
  return std::make_unique<NcclCollectives>(id, rank, size, stream);
}

}  // namespace ptrt::cuda

#endif
