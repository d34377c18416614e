// A TrackComm whose ranks are threads of the test, for the fusion's logic without MPI.
#pragma once

#include <atomic>
#include <barrier>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "runtime/comm/track_comm.h"

namespace ptrt {

class ThreadCommGroup {
 public:
  // hosts[r]: the lowest rank on the host of rank r.
  explicit ThreadCommGroup(std::vector<int> hosts)
      : hosts_(std::move(hosts)), barrier_(std::ssize(hosts_)), sent_(hosts_.size()) {}
  // On one host, or each on a host of its own.
  explicit ThreadCommGroup(int ranks, bool one_host = true)
      : ThreadCommGroup(one_host ? std::vector<int>(static_cast<std::size_t>(ranks)) : apart(ranks)) {}

  // Transfers that ranks have started so far and not waited for at once.
  int transfers() const { return transfers_; }

  // For a rank whose thread the caller runs; the group must outlive it.
  std::unique_ptr<TrackComm> comm(int rank) { return std::make_unique<Comm>(*this, rank); }

  // Runs body(comm of rank r) on one thread a rank.
  void run(const std::function<void(TrackComm&)>& body) {
    std::vector<std::thread> threads;
    for (int r = 0; r < static_cast<int>(sent_.size()); r++)
      threads.emplace_back([this, r, &body] {
        Comm comm(*this, r);
        body(comm);
      });
    for (auto& thread : threads) thread.join();
  }

 private:
  struct Line {
    alignas(64) std::byte bytes[64];
  };
  struct Board {
    Board(std::size_t ranks, std::size_t bytes)
        : lines_a_rank((bytes + 63) / 64), lines(ranks * lines_a_rank) {}
    std::size_t lines_a_rank;
    std::vector<Line> lines;
  };
  class Shared final : public SharedMemory {
   public:
    explicit Shared(std::shared_ptr<Board> board) : board_(std::move(board)) {}
    std::byte* of(int rank) override {
      return board_->lines[static_cast<std::size_t>(rank) * board_->lines_a_rank].bytes;
    }

   private:
    std::shared_ptr<Board> board_;
  };

  class Comm final : public TrackComm {
   public:
    Comm(ThreadCommGroup& group, int rank) : group_(group), rank_(rank) {}
    int size() const override { return static_cast<int>(group_.sent_.size()); }
    int rank() const override { return rank_; }
    void all_gather(const void* send, void* recv, std::size_t bytes) override {
      to_everyone(send, recv, bytes, 0);
    }
    void all_to_all(const void* send, void* recv, std::size_t bytes) override {
      to_everyone(send, recv, bytes, static_cast<std::size_t>(rank_) * bytes);
    }
    void exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives) override {
      start(kTransfers, sends, receives);
      finish(kTransfers);
    }
    void start(int transfer, std::span<const Outgoing> sends, std::span<const Incoming> receives) override {
      if (transfer < kTransfers) group_.transfers_++;
      for (const Outgoing& message : sends) group_.put(rank_, transfer, message);
      in_flight_[transfer].assign(receives.begin(), receives.end());
    }
    bool poll(int transfer) override {
      std::vector<Incoming>& missing = in_flight_[transfer];
      std::erase_if(missing, [&](const Incoming& m) { return group_.take_if_there(rank_, transfer, m); });
      return missing.empty();
    }
    void finish(int transfer) override {
      for (const Incoming& message : in_flight_[transfer]) group_.take(rank_, transfer, message);
      in_flight_[transfer].clear();
    }
    std::vector<int> hosts() override { return group_.hosts_; }
    std::unique_ptr<SharedMemory> share(std::size_t bytes) override {
      if (rank_ == 0) group_.shared_ = std::make_shared<Board>(group_.sent_.size(), bytes);
      group_.barrier_.arrive_and_wait();
      auto seen = std::make_unique<Shared>(group_.shared_);
      group_.barrier_.arrive_and_wait();
      return seen;
    }
    Waiting waiting() const override { return Waiting::yielding; }
    void listen(int) override {}

   private:
    void to_everyone(const void* send, void* recv, std::size_t bytes, std::size_t offset) {
      group_.sent_[static_cast<std::size_t>(rank_)] = static_cast<const char*>(send);
      group_.barrier_.arrive_and_wait();
      for (std::size_t r = 0; r < group_.sent_.size(); r++)
        std::memcpy(static_cast<char*>(recv) + r * bytes, group_.sent_[r] + offset, bytes);
      group_.barrier_.arrive_and_wait();
    }
    ThreadCommGroup& group_;
    int rank_;
    std::vector<Incoming> in_flight_[kTransfers + 1];  // not yet taken
  };

  using Queue = std::deque<std::vector<char>>;

  void put(int from, int transfer, const Outgoing& message) {
    const auto* data = static_cast<const char*>(message.data);
    const std::lock_guard lock(mutex_);
    mail_[{from, message.to, transfer}].emplace_back(data, data + message.bytes);
    arrived_.notify_all();
  }
  void take(int to, int transfer, const Incoming& message) {
    std::unique_lock lock(mutex_);
    Queue& queue = mail_[{message.from, to, transfer}];
    arrived_.wait(lock, [&] { return !queue.empty(); });
    take_first(queue, message);
  }
  bool take_if_there(int to, int transfer, const Incoming& message) {
    const std::lock_guard lock(mutex_);
    Queue& queue = mail_[{message.from, to, transfer}];
    if (queue.empty()) return false;
    take_first(queue, message);
    return true;
  }
  static void take_first(Queue& queue, const Incoming& message) {
    if (queue.front().size() != message.bytes) std::abort();
    std::copy(queue.front().begin(), queue.front().end(), static_cast<char*>(message.data));
    queue.pop_front();
  }

  static std::vector<int> apart(int ranks) {
    std::vector<int> hosts(static_cast<std::size_t>(ranks));
    std::iota(hosts.begin(), hosts.end(), 0);
    return hosts;
  }

  std::vector<int> hosts_;
  std::atomic<int> transfers_ = 0;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::map<std::tuple<int, int, int>, Queue> mail_;  // by sender, receiver and transfer
  std::shared_ptr<Board> shared_;
  std::barrier<> barrier_;
  std::vector<const char*> sent_;
};

}  // namespace ptrt
