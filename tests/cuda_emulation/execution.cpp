#include "cuda_emulation/execution.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda_emulation/cluster.h"
#include "cuda_emulation/stream.h"

namespace ptrt::emulation {

const Place* current_place = nullptr;

namespace {

Cluster* running = nullptr;
CopyTiming copy_timing = CopyTiming::alternating;
bool copies_land_at_once = false;  // in the running cluster

void land(const PendingCopy& copy) {
  if (copy.bytes > 0) std::memcpy(copy.to, copy.from, copy.bytes);
  std::memset(static_cast<std::byte*>(copy.to) + copy.bytes, 0, 16 - copy.bytes);
}

}  // namespace

const EmulatedDevice& emulated_device() {
  static const EmulatedDevice device = [] {
    const char* name = std::getenv("PTRT_EMULATED_DEVICE");
    const bool small = name != nullptr && std::string(name) == "sm_89";
    return small ? EmulatedDevice{8, 9, 2, 100 << 10, 99 << 10} : EmulatedDevice{};
  }();
  return device;
}

void run_grid(const char* kernel, dim3 grid, dim3 block, std::size_t shared_bytes, unsigned cluster,
              const std::function<void()>& body) {
  if (grid.x * grid.y * grid.z == 0 || block.x * block.y * block.z == 0)
    throw std::runtime_error(fmt::format("kernel {}: an empty grid or block", kernel));
  if (grid.y > 65535 || grid.z > 65535 || block.x * block.y * block.z > 1024 ||
      shared_bytes > emulated_device().block_shared_bytes)
    throw std::runtime_error(
        fmt::format("kernel {}: a grid, block or shared memory beyond the limits", kernel));
  if (cluster == 0 || grid.x % cluster != 0 || cluster > 8 ||
      (cluster > 1 && (emulated_device().major < 9 || block.x * block.y * block.z % kWarpLanes != 0)))
    throw std::runtime_error(
        fmt::format("kernel {}: clusters of {} blocks are not possible", kernel, cluster));
  // Shared memory is static data of the kernels, and stacks are kept.
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  Cluster emulated(kernel, grid, block, shared_bytes, cluster, body);
  running = &emulated;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; x += cluster) {
        copies_land_at_once = copy_timing == CopyTiming::at_once ||
                              (copy_timing == CopyTiming::alternating && !copies_land_at_once);
        emulated.run({x, y, z});
      }
  running = nullptr;
  current_place = nullptr;
  note_kernel(kernel, emulated.triggered());
}

void* dynamic_shared_memory() {
  return running->shared(cluster_rank());
}

int cluster_rank() {
  return running->block_of(running->current());
}

void cluster_barrier(const Location& where) {
  running->yield(State::at_cluster_barrier, where);
}

const void* in_block_of_cluster(const void* mine, int rank, const Location& where) {
  if (rank < 0 || rank >= running->blocks()) running->fail("a block outside the cluster is named", where);
  const auto at =
      static_cast<std::size_t>(static_cast<const std::byte*>(mine) - running->shared(cluster_rank()));
  if (at >= running->shared_bytes())
    running->fail("an address outside dynamic shared memory is mapped", where);
  if (running->has_returned(rank))
    running->fail("the shared memory of a block that has returned is read", where);
  return running->shared(rank) + at;
}

void barrier(const Location& where) {
  running->yield(State::at_barrier, where);
}

void grid_dependency_wait() {
  running->current().has_waited = true;
}

void trigger_dependent_launch() {
  running->trigger();
}

void named_barrier(int number, int threads, bool waits, const Location& where) {
  running->arrive(number, threads, waits, where);
}

int lane() {
  return running->current().index % kWarpLanes;
}

std::int64_t global_timer_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void fail(const char* what, const Location& where) {
  running->fail(what, where);
}

const void* WarpValues::of(int lane) const {
  const Thread* other = running->lane_of(running->current(), lane);
  if (other == nullptr || (mask_ >> lane & 1u) == 0)
    running->fail(fmt::format("a value is read from lane {}, which is not in the mask {:#x},", lane, mask_),
                  running->current().where);
  return other->seen.data();
}

WarpValues exchange(unsigned mask, const void* value, std::size_t bytes, const char* operation,
                    const Location& where) {
  Thread& self = running->current();
  if ((mask >> lane() & 1u) == 0)
    running->fail(fmt::format("{} with the mask {:#x} that leaves its caller out", operation, mask), where);
  if (bytes > kSlotBytes) running->fail("a value too large to exchange", where);
  if (bytes > 0) std::memcpy(self.given.data(), value, bytes);
  self.operation = operation;
  self.mask = mask;
  self.bytes = bytes;
  running->yield(State::in_warp_operation, where);
  return WarpValues(mask);
}

void cp_async(void* to, const void* from, std::size_t bytes) {
  if (!running->current().has_waited) check_early_copy(from, bytes);
  if (copies_land_at_once)
    land({to, from, bytes});
  else
    running->current().open_copies.push_back({to, from, bytes});
}

void set_copy_timing(CopyTiming timing) {
  copy_timing = timing;
}

void cp_async_commit() {
  Thread& self = running->current();
  self.copy_groups.push_back(std::move(self.open_copies));
  self.open_copies.clear();
}

void cp_async_wait(int groups_left) {
  Thread& self = running->current();
  while (static_cast<int>(self.copy_groups.size()) > groups_left) {
    for (const PendingCopy& copy : self.copy_groups.front()) land(copy);
    self.copy_groups.pop_front();
  }
}

}  // namespace ptrt::emulation
