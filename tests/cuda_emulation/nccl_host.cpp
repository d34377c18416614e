// The host implementation of kernels/cuda/host/nccl_collectives.h. Ranks are threads of the test and
// exchange data in this process's memory. A collective is work in the rank's stream and waits there
// for the other ranks; abort() ends such a wait with an error.
#include "cuda_emulation/nccl_host.h"

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda_emulation/stream.h"
#include "kernels/base/error.h"
#include "kernels/cuda/base/collective_memory.h"
#include "kernels/cuda/host/nccl_collectives.h"

namespace ptrt {
namespace {

// The state that the ranks of one group share.
class Rendezvous {
 public:
  explicit Rendezvous(int size) : sent_(static_cast<std::size_t>(size)) {}

  // Passes every rank's `send` to `take` after all have called; returns after all `take`s are done.
  void exchange(int rank, const float* send,
                const std::function<void(const std::vector<const float*>&)>& take) {
    std::unique_lock lock(mutex_);
    sent_[static_cast<std::size_t>(rank)] = send;
    wait_for_all(lock);
    lock.unlock();
    take(sent_);
    lock.lock();
    wait_for_all(lock);
  }
  void abort() {
    const std::lock_guard lock(mutex_);
    aborted_ = true;
    changed_.notify_all();
  }
  int size() const { return static_cast<int>(sent_.size()); }

 private:
  void wait_for_all(std::unique_lock<std::mutex>& lock) {
    const std::uint64_t round = round_;
    if (++here_ == sent_.size()) {
      here_ = 0;
      round_++;
      changed_.notify_all();
    }
    changed_.wait(lock, [&] { return aborted_ || round_ != round; });
    if (round_ == round) throw emulation::CollectiveAborted();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<const float*> sent_;
  std::size_t here_ = 0;
  std::uint64_t round_ = 0;
  bool aborted_ = false;
};

struct Registry {
  std::mutex mutex;
  std::uint64_t next_id = 1;
  std::map<std::uint64_t, std::weak_ptr<Rendezvous>> groups;
  std::string failure;
};
Registry& registry() {
  static Registry all;
  return all;
}

std::shared_ptr<Rendezvous> rendezvous_of(std::uint64_t id, int size) {
  const std::lock_guard lock(registry().mutex);
  std::weak_ptr<Rendezvous>& known = registry().groups[id];
  std::shared_ptr<Rendezvous> rendezvous = known.lock();
  if (rendezvous == nullptr) known = rendezvous = std::make_shared<Rendezvous>(size);
  PTRT_CHECK(rendezvous->size() == size);
  return rendezvous;
}

class HostCollectives final : public DeviceCollectives {
 public:
  HostCollectives(std::shared_ptr<Rendezvous> rendezvous, int rank, const Stream& stream)
      : rendezvous_(std::move(rendezvous)), rank_(rank), stream_(stream) {}
  // NCCL would never return if graphs still held collectives of the group.
  ~HostCollectives() override {
    if (captured_.use_count() == 1) return;
    std::fprintf(stderr, "a group of %d ranks ends while graphs hold %ld of its collectives\n", size(),
                 captured_.use_count() - 1);
    std::abort();
  }
  int size() const override { return rendezvous_->size(); }
  int rank() const override { return rank_; }
  std::string describe() const override { return "NCCL emulated on the host"; }

  float* allocate(std::size_t count, const std::string&) override {
    float* data = memory_->emplace_back(count, 0.0f).data();
    registered_.emplace_back(data, count * sizeof(float));
    return data;
  }
  // Adds from the last rank to the first: another order than the tree's.
  void all_reduce(const float* send, float* recv, std::int64_t count) override {
    exchange(send, [=](const std::vector<const float*>& sent) {
      for (std::int64_t i = 0; i < count; ++i) {
        float sum = 0;
        for (std::size_t r = sent.size(); r-- > 0;) sum += sent[r][i];
        recv[i] = sum;
      }
    });
  }
  void all_gather(const float* send, float* recv, std::int64_t count) override {
    exchange(send, [=](const std::vector<const float*>& sent) {
      for (std::size_t r = 0; r < sent.size(); ++r)
        std::memcpy(recv + static_cast<std::int64_t>(r) * count, sent[r],
                    static_cast<std::size_t>(count) * sizeof(float));
    });
  }
  std::string failure() override {
    const std::lock_guard lock(registry().mutex);
    return registry().failure;
  }
  void abort() noexcept override { rendezvous_->abort(); }

 private:
  void exchange(const float* send, std::function<void(const std::vector<const float*>&)> take) {
    emulation::submit(stream_.get(), [rendezvous = rendezvous_, memory = memory_, rank = rank_, send,
                                      take = std::move(take), held = held_by_graph()] {
      try {
        emulation::check_not_overtaking("a collective");
      } catch (...) {
        rendezvous->abort();  // the others wait for this rank
        throw;
      }
      rendezvous->exchange(rank, send, take);
      emulation::note_full_edge();
    });
  }

  // A reference to captured_ while the stream is captured; the graph owns it.
  std::shared_ptr<int> held_by_graph() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    cudaStreamIsCapturing(stream_.get(), &status);
    return status == cudaStreamCaptureStatusActive ? captured_ : nullptr;
  }

  std::shared_ptr<Rendezvous> rendezvous_;
  int rank_;
  const Stream& stream_;
  std::shared_ptr<int> captured_ = std::make_shared<int>(0);
  // Shared with queued work, which writes to it.
  std::shared_ptr<std::list<std::vector<float>>> memory_ = std::make_shared<std::list<std::vector<float>>>();
  std::list<cuda::CollectiveMemory> registered_;
};

}  // namespace

namespace emulation {

void set_collective_failure(const std::string& what) {
  const std::lock_guard lock(registry().mutex);
  registry().failure = what;
}

}  // namespace emulation

namespace cuda {

std::string nccl_missing() {
  return "";
}
std::size_t nccl_id_bytes() {
  return sizeof(std::uint64_t);
}
std::string make_nccl_id() {
  const std::lock_guard lock(registry().mutex);
  const std::uint64_t id = registry().next_id++;
  return {reinterpret_cast<const char*>(&id), sizeof id};
}
std::unique_ptr<DeviceCollectives> join_nccl(const std::string& id, int rank, int size, const Stream& stream,
                                             double) {
  std::uint64_t number = 0;
  PTRT_CHECK(id.size() == sizeof number);
  std::memcpy(&number, id.data(), sizeof number);
  return std::make_unique<HostCollectives>(rendezvous_of(number, size), rank, stream);
}

}  // namespace cuda
}  // namespace ptrt
