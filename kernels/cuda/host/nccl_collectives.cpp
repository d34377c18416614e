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
std::unique_ptr<DeviceCollectives> join_nccl(const std::string&, int, int, const Stream&, double) {
  throw_failure("{}", nccl_missing());
}

}  // namespace ptrt::cuda

#else

#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <future>
#include <list>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/cuda/base/collective_memory.h"
#include "kernels/cuda/base/cuda_check.h"
#include "kernels/cuda/host/nccl_library.h"
#include "kernels/nccl_version.h"

namespace ptrt::cuda {
namespace {

using Clock = std::chrono::steady_clock;

constexpr Clock::duration kPollInterval = std::chrono::milliseconds(1);
// How long abort() waits for the end of a call that another thread is in.
constexpr Clock::duration kAbortPatience = std::chrono::milliseconds(200);

std::string describe_error(ncclResult_t status, const char* call, ncclComm_t comm) {
  const char* detail = nccl().get_last_error != nullptr ? nccl().get_last_error(comm) : nullptr;
  const bool told = detail != nullptr && *detail != '\0';
  return fmt::format("NCCL: {}{}{}{}{}", nccl().get_error_string(status), *call != '\0' ? " in " : "", call,
                     told ? ": " : "", told ? detail : "");
}
void check(ncclResult_t status, const char* call, ncclComm_t comm) {
  if (status == ncclSuccess) return;
  leave_device_memory();  // work before it may wait for other ranks for ever
  throw_failure("{}", describe_error(status, call, comm));
}

// Device memory and its allocator.
struct Buffer {
  void* data = nullptr;  // null: allocation failed
  bool of_nccl = false;

  static Buffer from_nccl(std::size_t bytes) {
    void* data = nullptr;
    if (nccl().mem_alloc == nullptr || nccl().mem_free == nullptr ||
        nccl().mem_alloc(&data, bytes) != ncclSuccess)
      return {};
    return {data, true};
  }
  static Buffer from_cuda(std::size_t bytes, const std::string& what) {
    void* data = nullptr;
    if (cudaMalloc(&data, bytes) != cudaSuccess)
      throw_failure("not enough device memory for {}: {} bytes wanted", what, bytes);
    return {data, false};
  }
  void free() const {
    if (data == nullptr || device_memory_left()) return;
    if (of_nccl)
      nccl().mem_free(data);
    else
      cudaFree(data);
  }
};

// The communicator blocks: with one that does not, NCCL starts a thread for each collective outside a graph, and the
// caller polls until that has queued it. What may wait for other ranks at the start runs in a thread of its own, with a
// time limit (join_limit); a first use of an algorithm, which connects the ranks, is later and left to the watchdog.
class NcclCollectives final : public DeviceCollectives {
 public:
  NcclCollectives(const std::string& id, int rank, int size, const Stream& stream, Clock::duration join_limit)
      : stream_(stream), rank_(rank), size_(size), join_limit_(join_limit), windows_(nccl().has_windows()) {
    PTRT_CHECK(id.size() == sizeof(ncclUniqueId));
    ncclUniqueId unique;
    std::memcpy(&unique, id.data(), sizeof unique);
    comm_ = limited("ncclCommInitRank", [unique, rank, size] {
      ncclComm_t comm = nullptr;
      check(nccl().comm_init_rank(&comm, size, unique, rank), "ncclCommInitRank", nullptr);
      return comm;
    });
  }
  // Ranks leave a group after they all have the results of its last collective, so there is nothing to wait for: unless
  // an error is on its way, when collectives may be queued whose other ranks never come. ncclCommAbort() waits for
  // those, and so would the end of any device memory.
  ~NcclCollectives() override {
    if (aborted_ || std::uncaught_exceptions() > 0) {
      leave_device_memory();
      return;
    }
    abort();  // also releases the windows on the buffers
    registered_.clear();
    for (const Buffer& buffer : buffers_) buffer.free();
  }

  int size() const override { return size_; }
  int rank() const override { return rank_; }
  std::string describe() const override {
    const int version = nccl().version;
    const char* windows = windows_ && !buffers_.empty()     ? ", windows registered"
                          : nccl_waits_for_kernels(version) ? ""
                          : nccl().windows_overruled
                              ? ", no windows with this version in spite of NCCL_WIN_ENABLE"
                              : ", no windows with this version";
    return fmt::format("NCCL {}.{}.{}{}", version / 10000, version / 100 % 100, version % 100, windows);
  }

  float* allocate(std::size_t count, const std::string& what) override {
    const std::size_t bytes = count * sizeof(float);
    Buffer buffer = Buffer::from_nccl(bytes);
    if (!everywhere(buffer.data != nullptr)) {
      buffer.free();
      buffer = Buffer::from_cuda(bytes, what);
    }
    buffers_.push_back(buffer);
    registered_.emplace_back(buffer.data, bytes);
    PTRT_CUDA_CHECK(cudaMemsetAsync(buffer.data, 0, bytes, stream_.get()));
    wait_for_stream();
    windows_ = windows_ && buffer.of_nccl && register_window(buffer.data, bytes);
    return static_cast<float*>(buffer.data);
  }

  void all_reduce(const float* send, float* recv, std::int64_t count) override {
    call("ncclAllReduce", [&] {
      return nccl().all_reduce(send, recv, static_cast<std::size_t>(count), ncclFloat32, ncclSum, comm_,
                               stream_.get());
    });
  }
  void all_gather(const float* send, float* recv, std::int64_t count) override {
    call("ncclAllGather", [&] {
      return nccl().all_gather(send, recv, static_cast<std::size_t>(count), ncclFloat32, comm_,
                               stream_.get());
    });
  }

  // Asks also while the rank is in a call of its own, where it may wait for a rank that is gone. For a communicator that
  // blocks NCCL only reads atomics here.
  std::string failure() override {
    const std::lock_guard lock(lifetime_);
    if (comm_ == nullptr) return "";
    ncclResult_t state = ncclSuccess;
    const ncclResult_t status = nccl().comm_get_async_error(comm_, &state);
    if (status == ncclSuccess && (state == ncclSuccess || state == ncclInProgress)) return "";
    return describe_error(status != ncclSuccess ? status : state, "", comm_);
  }

  // A rank that stays in a call keeps its communicator, which ncclCommAbort() would free under it.
  void abort() noexcept override {
    aborted_ = true;
    const std::unique_lock lock(calls_, kAbortPatience);
    if (!lock) return;
    ncclComm_t comm = nullptr;
    {
      const std::lock_guard kept(lifetime_);
      std::swap(comm, comm_);
    }
    if (comm != nullptr) nccl().comm_abort(comm);
  }

 private:
  void call(const char* name, const auto& function) {
    const std::lock_guard lock(calls_);
    if (comm_ == nullptr || aborted_) throw_failure("NCCL: {} was given up", name);
    check(function(), name, comm_);
  }

  // The result of `function`, which must own all it needs beside device memory: when the time is over its thread is
  // left behind, and so is that memory.
  template <class Function>
  std::invoke_result_t<Function> limited(const char* name, Function function) const {
    using Result = std::invoke_result_t<Function>;
    int device = 0;
    PTRT_CUDA_CHECK(cudaGetDevice(&device));
    auto task = std::make_shared<std::packaged_task<Result()> >([device, function] {
      PTRT_CUDA_CHECK(cudaSetDevice(device));
      return function();
    });
    std::future<Result> result = task->get_future();
    std::thread([task] { (*task)(); }).detach();
    if (result.wait_for(join_limit_) != std::future_status::ready) give_up(name);
    return result.get();
  }
  [[noreturn]] void give_up(const char* name) const {
    leave_device_memory();
    throw_failure("NCCL: {} of rank {} of {} is not done after {:g} s: another rank has not called it", name,
                  rank_, size_, std::chrono::duration<double>(join_limit_).count());
  }
  void wait_for_stream() const {
    for (const auto start = Clock::now();; std::this_thread::sleep_for(kPollInterval)) {
      const cudaError_t status = cudaStreamQuery(stream_.get());
      if (status != cudaErrorNotReady) return check_cuda(status, "cudaStreamQuery", __FILE__, __LINE__);
      if (Clock::now() - start > join_limit_) give_up("the first collective");
    }
  }

  // Whether something holds on every rank of the group. Collective; waits.
  bool everywhere(bool here) {
    const DevicePointer<float> flag = allocate_device_array<float>(2, "a flag");
    const float mine = here ? 0.0f : 1.0f;
    float missing = 0;
    PTRT_CUDA_CHECK(cudaMemcpyAsync(flag.get(), &mine, sizeof mine, cudaMemcpyHostToDevice, stream_.get()));
    limited("ncclAllReduce", [at = flag.get(), comm = comm_, stream = stream_.get()] {
      check(nccl().all_reduce(at, at + 1, 1, ncclFloat32, ncclSum, comm, stream), "ncclAllReduce", comm);
    });
    wait_for_stream();  // first, since cudaMemcpy() would wait without a time limit
    PTRT_CUDA_CHECK(cudaMemcpy(&missing, flag.get() + 1, sizeof missing, cudaMemcpyDeviceToHost));
    return missing == 0;
  }

#ifdef PTRT_NCCL_WINDOWS
  // The communicator owns the window. If the ranks cannot share one, NCCL succeeds without a
  // window, or with one of this rank alone; after an error the communicator is unusable.
  bool register_window(void* data, std::size_t bytes) {
    const bool registered = limited("ncclCommWindowRegister", [data, bytes, comm = comm_] {
      ncclWindow_t window = nullptr;
      check(nccl().comm_window_register(comm, data, bytes, &window, NCCL_WIN_COLL_SYMMETRIC),
            "ncclCommWindowRegister (NCCL_WIN_ENABLE=0 does without)", comm);
      return window != nullptr;
    });
    return everywhere(registered);
  }
#else
  bool register_window(void*, std::size_t) {
    return false;
  }
#endif

  const Stream& stream_;
  int rank_, size_;
  Clock::duration join_limit_;
  ncclComm_t comm_ = nullptr;
  std::vector<Buffer> buffers_;
  std::list<CollectiveMemory> registered_;
  bool windows_;  // on every buffer
  std::atomic<bool> aborted_{false};
  // comm_ becomes null with both locks held, and is then freed. `calls_` is held during the rank's calls with it, which may
  // wait for other ranks, `lifetime_` while the watchdog asks for errors.
  std::timed_mutex calls_;
  std::mutex lifetime_;
};

}  // namespace

std::string nccl_missing() {
  return nccl().missing;
}
int nccl_version() {
  return nccl().version;
}
std::size_t nccl_id_bytes() {
  return sizeof(ncclUniqueId);
}
std::string make_nccl_id() {
  ncclUniqueId id;
  check(nccl().get_unique_id(&id), "ncclGetUniqueId", nullptr);
  return {reinterpret_cast<const char*>(&id), sizeof id};
}
std::unique_ptr<DeviceCollectives> join_nccl(const std::string& id, int rank, int size, const Stream& stream,
                                             double join_limit_s) {
  const auto limit = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(join_limit_s));
  return std::make_unique<NcclCollectives>(id, rank, size, stream, limit);
}

}  // namespace ptrt::cuda

#endif
