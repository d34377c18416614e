#include "cuda_emulation/execution.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/context/detail/fcontext.hpp>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_emulation/fiber_stacks.h"
#include "cuda_emulation/stream.h"

namespace ptrt::emulation {

const Place* current_place = nullptr;

namespace {

namespace context = boost::context::detail;

enum class State : std::uint8_t { ready, at_barrier, at_named_barrier, in_warp_operation, done };

struct PendingCopy {
  void* to;
  const void* from;
  std::size_t bytes;
};

struct Thread {
  Place place;
  int index = 0;            // in the block
  bool has_waited = false;  // grid_dependency_wait() was called
  State state = State::ready;
  context::fcontext_t at = nullptr;  // where it continues
  // What it waits for.
  Location where;
  const char* operation = "__syncthreads";
  unsigned mask = 0;
  int barrier = 0;  // its number
  std::size_t bytes = 0;
  alignas(16) std::array<std::byte, kSlotBytes> given;  // the lane's value for the operation it waits in
  alignas(16)
      std::array<std::byte, kSlotBytes> seen;  // the value as others see it once the operation is complete
  std::vector<PendingCopy> open_copies;
  std::deque<std::vector<PendingCopy>> copy_groups;
};

class Block {
 public:
  Block(const char* kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
        const std::function<void()>& body)
      : kernel_(kernel), body_(body), shared_bytes_(shared_bytes), shared_(nullptr, &std::free) {
    threads_.resize(std::size_t{block.x} * block.y * block.z);
    for (std::size_t i = 0; i < threads_.size(); ++i) {
      const auto n = static_cast<unsigned>(i);
      threads_[i].place = {{n % block.x, n / block.x % block.y, n / block.x / block.y}, uint3{}, block, grid};
      threads_[i].index = static_cast<int>(i);
    }
  }

  void run(uint3 index) {
    take_shared_memory();
    arrived_.fill(0);
    for (Thread& thread : threads_) start(thread, index);
    for (bool descending = false;; descending = !descending) {
      const int warps = (static_cast<int>(threads_.size()) + kWarpLanes - 1) / kWarpLanes;
      for (int i = 0; i < warps; ++i) run_warp(descending ? warps - 1 - i : i, descending);
      const auto in_state = [&](State state) {
        return std::ranges::all_of(threads_, [&](const Thread& thread) { return thread.state == state; });
      };
      if (std::ranges::any_of(threads_, [](const Thread& t) { return t.state == State::ready; })) continue;
      if (in_state(State::done)) return check_end();
      if (!in_state(State::at_barrier)) throw std::runtime_error(describe_deadlock());
      for (Thread& thread : threads_) thread.state = State::ready;
    }
  }

  Thread& current() { return *current_; }
  void trigger() { triggered_ = true; }
  bool triggered() const { return triggered_; }
  const Thread* lane_of(const Thread& thread, int lane) const {
    const auto index = static_cast<std::size_t>(thread.index / kWarpLanes * kWarpLanes + lane);
    return index < threads_.size() ? &threads_[index] : nullptr;
  }
  void* shared() const { return shared_.get(); }

  // Leaves the running thread, in `state`, for the scheduler.
  void yield(State state, const Location& where) {
    current_->state = state;
    current_->where = where;
    void* fake_stack = nullptr;
    leave_stack(&fake_stack, scheduler_stack_, scheduler_stack_bytes_);
    scheduler_ = context::jump_fcontext(scheduler_, nullptr).fctx;
    enter_stack(fake_stack, nullptr, nullptr);
  }

  // Counts the running thread; the last to arrive releases those that wait.
  void arrive(int number, int threads, bool waits, const Location& where) {
    int& arrived = arrived_.at(static_cast<std::size_t>(number));
    if (++arrived < threads) {
      current_->barrier = number;
      if (waits) yield(State::at_named_barrier, where);
      return;
    }
    arrived = 0;
    for (Thread& thread : threads_)
      if (thread.state == State::at_named_barrier && thread.barrier == number) thread.state = State::ready;
  }

  // Takes `what` by value, since the caller's frame is never unwound.
  [[noreturn]] void fail(std::string what, const Location& where) {
    failure_ = std::move(what);
    failure_ += " at " + place_of(*current_, where);
    yield(State::done, where);
    std::abort();  // a thread that failed is not resumed
  }

 private:
  void take_shared_memory() {
    void* memory = nullptr;
    if (shared_bytes_ > 0 && posix_memalign(&memory, 128, shared_bytes_) != 0)
      throw std::runtime_error("no memory for an emulated block");
    if (memory != nullptr) std::memset(memory, 0xFF, shared_bytes_);  // NaN as float and as bfloat16
    shared_.reset(static_cast<std::byte*>(memory));
  }

  void start(Thread& thread, uint3 index) {
    std::byte* stack = stack_of(thread.index);
    forget_frames(stack);
    thread.place.block = index;
    thread.has_waited = false;
    thread.state = State::ready;
    thread.at = context::make_fcontext(stack + kStackBytes, kStackBytes, &Block::enter);
  }

  // The first frame of a thread's stack.
  static void enter(context::transfer_t from) {
    auto& block = *static_cast<Block*>(from.data);
    enter_stack(nullptr, &block.scheduler_stack_, &block.scheduler_stack_bytes_);
    block.scheduler_ = from.fctx;
    try {
      block.body_();
    } catch (const std::exception& error) {
      block.failure_ = error.what();
    }
    block.current_->state = State::done;
    leave_stack(nullptr, block.scheduler_stack_, block.scheduler_stack_bytes_);
    context::jump_fcontext(block.scheduler_, nullptr);
  }

  void resume(Thread& thread) {
    current_ = &thread;
    current_place = &thread.place;
    void* fake_stack = nullptr;
    leave_stack(&fake_stack, stack_of(thread.index), kStackBytes);
    thread.at = context::jump_fcontext(thread.at, this).fctx;
    enter_stack(fake_stack, nullptr, nullptr);
    if (!failure_.empty()) throw std::runtime_error(fmt::format("kernel {}: {}", kernel_, failure_));
  }

  // Runs a warp until each of its threads has returned or waits at a barrier.
  void run_warp(int warp, bool descending) {
    const int first = warp * kWarpLanes;
    const int lanes = std::min(kWarpLanes, static_cast<int>(threads_.size()) - first);
    do {
      for (int i = 0; i < lanes; ++i) {
        Thread& thread = threads_[static_cast<std::size_t>(first + (descending ? lanes - 1 - i : i))];
        if (thread.state == State::ready) resume(thread);
      }
    } while (complete_operations(first, lanes));
  }

  // Releases the lanes of every operation that all lanes of its mask have called.
  bool complete_operations(int first, int lanes) {
    bool released = false;
    for (int i = 0; i < lanes; ++i) {
      const Thread& thread = threads_[static_cast<std::size_t>(first + i)];
      if (thread.state != State::in_warp_operation || !all_have_called(thread, first, lanes)) continue;
      const unsigned mask = thread.mask;
      for (int lane = 0; lane < lanes; ++lane)
        if ((mask >> lane & 1u) != 0) {
          Thread& other = threads_[static_cast<std::size_t>(first + lane)];
          std::memcpy(other.seen.data(), other.given.data(), other.bytes);
          other.state = State::ready;
        }
      released = true;
    }
    return released;
  }

  bool all_have_called(const Thread& thread, int first, int lanes) const {
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      if ((thread.mask >> lane & 1u) == 0) continue;
      if (lane >= lanes) return false;
      const Thread& other = threads_[static_cast<std::size_t>(first + lane)];
      if (other.state != State::in_warp_operation || other.mask != thread.mask ||
          other.bytes != thread.bytes || std::strcmp(other.operation, thread.operation) != 0)
        return false;
    }
    return true;
  }

  void check_end() const {
    if (std::ranges::any_of(arrived_, [](int count) { return count != 0; }))
      throw std::runtime_error(
          fmt::format("kernel {}: threads arrived at a barrier that nobody waits at", kernel_));
    for (const Thread& thread : threads_) {
      if (!thread.has_waited)
        throw std::runtime_error(
            fmt::format("kernel {}: a thread returned before it waited for the kernels before its own, {}",
                        kernel_, place_of(thread, thread.where)));
      if (!thread.open_copies.empty() || !thread.copy_groups.empty())
        throw std::runtime_error(
            fmt::format("kernel {}: a thread returned before its asynchronous copies were waited for, {}",
                        kernel_, place_of(thread, thread.where)));
    }
  }

  std::string place_of(const Thread& thread, const Location& where) const {
    const auto& [t, b, block_size, grid_size] = thread.place;
    return fmt::format("block ({}, {}, {}) thread ({}, {}, {}), {}:{}", b.x, b.y, b.z, t.x, t.y, t.z,
                       where.file_name(), where.line());
  }

  // One line for each different place that threads wait at.
  std::string describe_deadlock() const {
    std::string text = fmt::format("kernel {}: threads wait for each other forever:", kernel_);
    std::vector<std::string> listed;
    for (const Thread& thread : threads_) {
      const bool done = thread.state == State::done;
      const std::string kind =
          done ? "returned"
               : fmt::format("waits in {} (mask {:#x}) at line {}",
                             thread.state == State::at_barrier         ? "__syncthreads"
                             : thread.state == State::at_named_barrier ? "a named barrier"
                                                                       : thread.operation,
                             thread.state == State::in_warp_operation ? thread.mask : 0, thread.where.line());
      if (std::ranges::count(listed, kind) > 0) continue;
      listed.push_back(kind);
      const auto& t = thread.place.thread;
      text += done ? fmt::format("\n  thread ({}, {}, {}) returned", t.x, t.y, t.z)
                   : fmt::format("\n  {} at {}", kind, place_of(thread, thread.where));
    }
    return text;
  }

  const char* kernel_;
  const std::function<void()>& body_;
  std::size_t shared_bytes_;
  std::unique_ptr<std::byte, decltype(&std::free)> shared_;
  std::vector<Thread> threads_;
  std::array<int, 16> arrived_{};  // at named barriers
  Thread* current_ = nullptr;
  bool triggered_ = false;  // by a thread of any block
  context::fcontext_t scheduler_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_stack_bytes_ = 0;
  std::string failure_;
};

Block* running = nullptr;
CopyTiming copy_timing = CopyTiming::alternating;
bool copies_land_at_once = false;  // in the running block

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

void run_grid(const char* kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
              const std::function<void()>& body) {
  if (grid.x * grid.y * grid.z == 0 || block.x * block.y * block.z == 0)
    throw std::runtime_error(fmt::format("kernel {}: an empty grid or block", kernel));
  if (grid.y > 65535 || grid.z > 65535 || block.x * block.y * block.z > 1024 ||
      shared_bytes > emulated_device().block_shared_bytes)
    throw std::runtime_error(
        fmt::format("kernel {}: a grid, block or shared memory beyond the limits", kernel));
  // Shared memory is static data of the kernels, and stacks are kept.
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  Block emulated(kernel, grid, block, shared_bytes, body);
  running = &emulated;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        copies_land_at_once = copy_timing == CopyTiming::at_once ||
                              (copy_timing == CopyTiming::alternating && !copies_land_at_once);
        emulated.run({x, y, z});
      }
  running = nullptr;
  current_place = nullptr;
  note_kernel(kernel, emulated.triggered());
}

void* dynamic_shared_memory() {
  return running->shared();
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
