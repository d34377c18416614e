// The threads of a cluster of blocks, as fibers, and what they wait for.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/context/detail/fcontext.hpp>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_emulation/execution.h"
#include "cuda_emulation/fiber_stacks.h"

namespace ptrt::emulation {

namespace context = boost::context::detail;

enum class State : std::uint8_t {
  ready,
  at_barrier,
  at_named_barrier,
  at_cluster_barrier,
  in_warp_operation,
  done
};

struct PendingCopy {
  void* to;
  const void* from;
  std::size_t bytes;
};

struct Thread {
  Place place;
  int index = 0;            // in the cluster
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

// A cluster of blocks, mostly one.
class Cluster {
 public:
  Cluster(const char* kernel, dim3 grid, dim3 block, std::size_t shared_bytes, unsigned blocks,
          const std::function<void()>& body)
      : kernel_(kernel),
        body_(body),
        shared_bytes_(shared_bytes),
        block_threads_(block.x * block.y * block.z),
        arrived_(blocks) {
    for (unsigned b = 0; b < blocks; ++b) shared_.emplace_back(nullptr, &std::free);
    threads_.resize(std::size_t{block_threads_} * blocks);
    for (std::size_t i = 0; i < threads_.size(); ++i) {
      const unsigned n = static_cast<unsigned>(i) % block_threads_;
      threads_[i].place = {{n % block.x, n / block.x % block.y, n / block.x / block.y}, uint3{}, block, grid};
      threads_[i].index = static_cast<int>(i);
    }
  }

  // `index`: of the first block.
  void run(uint3 index) {
    take_shared_memory();
    for (auto& arrived : arrived_) arrived.fill(0);
    for (Thread& thread : threads_)
      start(thread, {index.x + static_cast<unsigned>(block_of(thread)), index.y, index.z});
    // One block runs as far as it can, then the next: so that a missing barrier of the cluster changes results.
    for (bool descending = false;; descending = !descending) {
      for (int i = 0; i < blocks(); ++i) run_block(descending ? blocks() - 1 - i : i);
      if (all_in(State::done, threads_)) return check_end();
      if (!all_in(State::at_cluster_barrier, threads_)) throw std::runtime_error(describe_deadlock());
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
  int blocks() const { return static_cast<int>(shared_.size()); }
  int block_of(const Thread& thread) const { return thread.index / static_cast<int>(block_threads_); }
  std::byte* shared(int block) const { return shared_[static_cast<std::size_t>(block)].get(); }
  std::size_t shared_bytes() const { return shared_bytes_; }
  bool has_returned(int block) const { return all_in(State::done, threads_of(block)); }

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
    const int block = block_of(*current_);
    int& arrived = arrived_[static_cast<std::size_t>(block)].at(static_cast<std::size_t>(number));
    if (++arrived < threads) {
      current_->barrier = number;
      if (waits) yield(State::at_named_barrier, where);
      return;
    }
    arrived = 0;
    for (Thread& thread : threads_)
      if (thread.state == State::at_named_barrier && thread.barrier == number && block_of(thread) == block)
        thread.state = State::ready;
  }

  // Takes `what` by value, since the caller's frame is never unwound.
  [[noreturn]] void fail(std::string what, const Location& where) {
    failure_ = std::move(what);
    failure_ += " at " + place_of(*current_, where);
    yield(State::done, where);
    std::abort();  // a thread that failed is not resumed
  }

 private:
  static bool all_in(State state, std::span<const Thread> threads) {
    return std::ranges::all_of(threads, [&](const Thread& thread) { return thread.state == state; });
  }
  std::span<const Thread> threads_of(int block) const {
    return std::span(threads_).subspan(static_cast<std::size_t>(block) * block_threads_, block_threads_);
  }

  std::span<Thread> threads_of(int block) {
    return std::span(threads_).subspan(static_cast<std::size_t>(block) * block_threads_, block_threads_);
  }

  // Until its threads have returned, or wait for other blocks or forever.
  void run_block(int block) {
    const std::span<Thread> threads = threads_of(block);
    const int warps = (static_cast<int>(block_threads_) + kWarpLanes - 1) / kWarpLanes, first = block * warps;
    for (bool descending = false;; descending = !descending) {
      for (int i = 0; i < warps; ++i) run_warp(first + (descending ? warps - 1 - i : i), descending);
      if (std::ranges::any_of(threads, [](const Thread& t) { return t.state == State::ready; })) continue;
      if (!all_in(State::at_barrier, threads)) return;
      for (Thread& thread : threads) thread.state = State::ready;
    }
  }

  void take_shared_memory() {
    for (auto& shared : shared_) {
      void* memory = nullptr;
      if (shared_bytes_ > 0 && posix_memalign(&memory, 128, shared_bytes_) != 0)
        throw std::runtime_error("no memory for an emulated block");
      if (memory != nullptr) std::memset(memory, 0xFF, shared_bytes_);  // NaN as float and as bfloat16
      shared.reset(static_cast<std::byte*>(memory));
    }
  }

  void start(Thread& thread, uint3 index) {
    std::byte* stack = stack_of(thread.index);
    forget_frames(stack);
    thread.place.block = index;
    thread.has_waited = false;
    thread.state = State::ready;
    thread.at = context::make_fcontext(stack + kStackBytes, kStackBytes, &Cluster::enter);
  }

  // The first frame of a thread's stack.
  static void enter(context::transfer_t from) {
    auto& block = *static_cast<Cluster*>(from.data);
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
    if (std::ranges::any_of(arrived_, [](const auto& of_block) {
          return std::ranges::any_of(of_block, [](int count) { return count != 0; });
        }))
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
                             thread.state == State::at_barrier           ? "__syncthreads"
                             : thread.state == State::at_named_barrier   ? "a named barrier"
                             : thread.state == State::at_cluster_barrier ? "barrier.cluster"
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
  unsigned block_threads_;
  std::vector<std::unique_ptr<std::byte, decltype(&std::free)>> shared_;  // of each block
  std::vector<Thread> threads_;                                           // of all blocks
  std::vector<std::array<int, 16>> arrived_;                              // of each block, at named barriers
  Thread* current_ = nullptr;
  bool triggered_ = false;  // by a thread of any block
  context::fcontext_t scheduler_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_stack_bytes_ = 0;
  std::string failure_;
};

}  // namespace ptrt::emulation
