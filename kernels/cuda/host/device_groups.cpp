#include "kernels/cuda/host/device_groups.h"

#include <list>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/cuda/base/collective_memory.h"
#include "kernels/cuda/base/cuda_check.h"
#include "kernels/cuda/host/device_timer.h"
#include "kernels/cuda/host/nccl_collectives.h"
#include "kernels/cuda/host/timed_wait.h"

namespace ptrt::cuda {
namespace {

// Rank 0 of a group whose other ranks do not exist; they contribute the zeros of allocate().
class EmulatedCollectives final : public DeviceCollectives {
 public:
  EmulatedCollectives(int size, const LinkModel& link, const Stream& stream)
      : size_(size), link_(link), stream_(stream) {}
  int size() const override { return size_; }
  int rank() const override { return 0; }
  std::string describe() const override { return "EMULATED"; }

  float* allocate(std::size_t count, const std::string& what) override {
    memory_.push_back(allocate_device_array<float>(count, what));
    registered_.emplace_back(memory_.back().get(), count * sizeof(float));
    PTRT_CUDA_CHECK(cudaMemsetAsync(memory_.back().get(), 0, count * sizeof(float), stream_.get()));
    return memory_.back().get();
  }
  void all_reduce(const float* send, float* recv, std::int64_t count) override {
    finish(send, recv, count, link_.reduce_seconds(bytes(count), size_));
  }
  void all_gather(const float* send, float* recv, std::int64_t count) override {
    finish(send, recv, count, link_.gather_seconds(bytes(count), size_));
  }
  std::string failure() override { return ""; }
  void abort() noexcept override {}

 private:
  static std::size_t bytes(std::int64_t count) { return static_cast<std::size_t>(count) * sizeof(float); }
  void finish(const float* send, float* recv, std::int64_t count, double seconds) {
    PTRT_CUDA_CHECK(cudaMemcpyAsync(recv, send, bytes(count), cudaMemcpyDeviceToDevice, stream_.get()));
    timed_wait(static_cast<std::int64_t>(1e9 * seconds), stream_.get());
  }

  int size_;
  LinkModel link_;
  const Stream& stream_;
  std::vector<DevicePointer<float>> memory_;
  std::list<CollectiveMemory> registered_;
};

}  // namespace

std::string CudaGroups::missing() const {
  return nccl_missing();
}
std::string CudaGroups::make_id() {
  return make_nccl_id();
}
std::size_t CudaGroups::id_bytes() const {
  return nccl_id_bytes();
}
std::unique_ptr<DeviceCollectives> CudaGroups::join(const std::string& id, int rank, int size) {
  return join_nccl(id, rank, size, stream_);
}
std::unique_ptr<DeviceCollectives> CudaGroups::emulate(int size, const LinkModel& link) {
  return std::make_unique<EmulatedCollectives>(size, link, stream_);
}
std::unique_ptr<DeviceTimer> CudaGroups::make_timer() {
  return std::make_unique<EventTimer>(stream_, clock_);
}

}  // namespace ptrt::cuda
