// A TrackComm whose ranks are threads of the test: the fusion's logic without MPI.
#pragma once

#include <barrier>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "runtime/track_comm.h"

namespace ptrt {

class ThreadCommGroup {
 public:
  explicit ThreadCommGroup(int ranks) : barrier_(ranks), sent_(static_cast<std::size_t>(ranks)) {}

  // Of a rank whose thread the caller runs; the group outlives it.
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
  class Comm final : public TrackComm {
   public:
    Comm(ThreadCommGroup& group, int rank) : group_(group), rank_(rank) {}
    int size() const override { return static_cast<int>(group_.sent_.size()); }
    int rank() const override { return rank_; }
    void all_gather(const void* send, void* recv, std::size_t bytes) override {
      exchange(send, recv, bytes, 0);
    }
    void all_to_all(const void* send, void* recv, std::size_t bytes) override {
      exchange(send, recv, bytes, static_cast<std::size_t>(rank_) * bytes);
    }

   private:
    void exchange(const void* send, void* recv, std::size_t bytes, std::size_t offset) {
      group_.sent_[static_cast<std::size_t>(rank_)] = static_cast<const char*>(send);
      group_.barrier_.arrive_and_wait();
      for (std::size_t r = 0; r < group_.sent_.size(); r++)
        std::memcpy(static_cast<char*>(recv) + r * bytes, group_.sent_[r] + offset, bytes);
      group_.barrier_.arrive_and_wait();
    }
    ThreadCommGroup& group_;
    int rank_;
  };

  std::barrier<> barrier_;
  std::vector<const char*> sent_;
};

}  // namespace ptrt
