#include "runtime/sync/all_reduce.h"

#include <utility>

#include "kernels/base/error.h"
#include "runtime/sync/device_all_reduce.h"
#include "runtime/sync/host_all_reduce.h"
#include "runtime/sync/staged_all_reduce.h"
#include "runtime/trace/tracer.h"

namespace ptrt {

void AllReduce::start(int, std::span<const float* const>, std::int64_t count, float, const float*, float*) {
  PTRT_CHECK(overlaps(count));
}

void AllReduce::finish(int) {
  PTRT_CHECK(overlaps(0));
}

namespace {

// Records the sums of another: each as "sync", or its two ends as "sync start" and "sync end" where it is in flight
// meanwhile; within it as "wait" the time until the slowest rank had sent its part, where that is known.
class TracedAllReduce final : public AllReduce {
 public:
  TracedAllReduce(std::unique_ptr<AllReduce> inner, Tracer& tracer)
      : inner_(std::move(inner)), tracer_(tracer) {}

  void start_step() override {
    counted([&] { inner_->start_step(); });
  }
  void sum(std::span<const float* const> local, std::int64_t count, float scale, const float* add_to,
           float* out) override {
    recorded("sync", [&] { inner_->sum(local, count, scale, add_to, out); });
  }
  float* send_buffer(std::int64_t count) override { return inner_->send_buffer(count); }
  std::span<const float* const> exchange(std::span<const float* const> local, std::int64_t count) override {
    std::span<const float* const> parts;
    recorded("sync", [&] { parts = inner_->exchange(local, count); });
    return parts;
  }
  void consumed() override {
    counted([&] { inner_->consumed(); });
  }
  bool overlaps(std::int64_t count) const override { return inner_->overlaps(count); }
  void start(int number, std::span<const float* const> local, std::int64_t count, float scale,
             const float* add_to, float* out) override {
    recorded("sync start", [&] { inner_->start(number, local, count, scale, add_to, out); });
  }
  void poll() override {
    counted([&] { inner_->poll(); });
  }
  void finish(int number) override {
    recorded("sync end", [&] { inner_->finish(number); });
  }
  bool recordable() const override { return inner_->recordable(); }
  DeviceCollectives* device_group() override { return inner_->device_group(); }
  void settle() override {
    counted([&] { inner_->settle(); });
  }
  std::string describe() const override { return inner_->describe(); }

 private:
  // Others read and reset the counts of this object.
  void counted(const auto& call) {
    inner_->stats() = stats_;
    call();
    stats_ = inner_->stats();
  }
  void recorded(const char* name, const auto& call) {
    const SyncStats before = stats_;
    const std::int64_t start = now_ns();
    counted(call);
    const std::int64_t end = now_ns();
    const double waited_s = stats_.wait_seconds - before.wait_seconds;
    if (stats_.sync_points == before.sync_points && stats_.seconds == before.seconds)
      return;  // nothing was done
    tracer_.add(name, start, end, "bytes", static_cast<std::int64_t>(stats_.bytes_sent - before.bytes_sent));
    if (waited_s > 0) tracer_.add("wait", start, start + static_cast<std::int64_t>(waited_s * 1e9));
  }

  std::unique_ptr<AllReduce> inner_;
  Tracer& tracer_;
};

std::unique_ptr<AllReduce> make_plain(TrackComm& comm, Backend& backend, StepState& state, std::int64_t parts,
                                      std::int64_t max_values, const AllReduceOptions& options) {
  if (comm.size() == 1 || backend.device_groups() == nullptr) {
    // Absent ranks can only send back what they receive.
    const auto algorithm = options.emulated ? std::optional(AllReduceAlgorithm::one_shot) : std::nullopt;
    return std::make_unique<HostAllReduce>(comm, backend, state, parts, max_values, algorithm);
  }
  if (options.device_fusion == DeviceFusion::staged)
    return std::make_unique<StagedAllReduce>(comm, backend, state, parts, max_values);
  return std::make_unique<DeviceAllReduce>(comm, backend, state, parts, max_values, options);
}

}  // namespace

std::int64_t device_sum_bytes(DeviceFusion kind, std::int64_t ranks, std::int64_t parts,
                              std::int64_t max_values) {
  if (ranks == 1) return 0;
  const std::int64_t values = kind == DeviceFusion::staged
                                  ? max_values
                                  : DeviceAllReduce::buffer_values(kind, ranks, parts, max_values);
  return values * static_cast<std::int64_t>(sizeof(float));
}

std::unique_ptr<AllReduce> make_all_reduce(TrackComm& comm, Backend& backend, StepState& state,
                                           std::int64_t parts, std::int64_t max_values,
                                           const AllReduceOptions& options) {
  auto plain = make_plain(comm, backend, state, parts, max_values, options);
  if (options.tracer == nullptr) return plain;
  return std::make_unique<TracedAllReduce>(std::move(plain), *options.tracer);
}

}  // namespace ptrt
