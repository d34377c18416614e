// Collectives between ranks with a device each: sums and gathers over the devices' memory, queued
// after the backend's ops. Used by runtime/; free of CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace ptrt {

// Models a link: a collective takes latency_us + bytes · factor / gb_per_s. The factor is n - 1 for
// an all-gather or all-to-all of `bytes` per rank over n ranks (what a rank receives), and 2 (n -
// 1) / n for an all-reduce of `bytes` (a ring).
struct LinkModel {
  double latency_us = 0;  // of a collective
  double gb_per_s = 0;    // 10^9 bytes a second into a rank

  double gather_seconds(std::size_t bytes, int ranks) const {
    return seconds(static_cast<double>(bytes) * (ranks - 1));
  }
  double reduce_seconds(std::size_t bytes, int ranks) const {
    return seconds(static_cast<double>(bytes) * 2 * (ranks - 1) / ranks);
  }

 private:
  double seconds(double moved_bytes) const { return 1e-6 * latency_us + 1e-9 * moved_bytes / gb_per_s; }
};

// A group of devices, one per rank. All ranks call the collectives in the same order; these only
// queue work on the backend's stream, and throw failure when the library refuses it. `count` values
// are float32.
class DeviceCollectives {
 public:
  virtual ~DeviceCollectives() = default;
  virtual int size() const = 0;
  virtual int rank() const = 0;
  virtual std::string describe() const = 0;  // "NCCL 2.30.7, windows registered"

  // Zeroed memory that collectives move fastest; lives as long as the group. Collective.
  virtual float* allocate(std::size_t count, const std::string& what) = 0;

  // recv = sum of all ranks' `send`, added in the library's order.
  virtual void all_reduce(const float* send, float* recv, std::int64_t count) = 0;
  // recv[r · count …] = rank r's `send`.
  virtual void all_gather(const float* send, float* recv, std::int64_t count) = 0;

  // The next two may be called by any thread. Why queued work failed; empty while nothing has.
  virtual std::string failure() = 0;
  // Ends the group on this rank: work that waits for other ranks on the device returns or fails.
  // Nothing else may be called afterwards.
  virtual void abort() noexcept = 0;
};

// Times stretches of the device's work without waiting for it.
class DeviceTimer {
 public:
  virtual ~DeviceTimer() = default;
  // Around the calls that queue the work. In a recorded step, every replay is timed.
  virtual void begin() = 0;
  virtual void end() = 0;
  // Seconds of the stretches that have run since the last call; with `wait`, waits for all queued
  // ones.
  virtual double take_seconds(bool wait) = 0;
};

// What a backend with a memory of its own offers for groups of ranks.
class DeviceGroups {
 public:
  virtual ~DeviceGroups() = default;
  // Why this process cannot join a group; empty when it can.
  virtual std::string missing() const = 0;
  // An identifier for a new group; one of its ranks makes it and gives it to all.
  virtual std::string make_id() = 0;
  virtual std::size_t id_bytes() const = 0;
  // Collective over the group. Throws failure when the others have not joined within a minute.
  virtual std::unique_ptr<DeviceCollectives> join(const std::string& id, int rank, int size) = 0;
  // A group whose other ranks are absent: each collective waits on the device for as long as `link`
  // says, and its results are meaningless.
  virtual std::unique_ptr<DeviceCollectives> emulate(int size, const LinkModel& link) = 0;

  virtual std::unique_ptr<DeviceTimer> make_timer() = 0;
  virtual void wait() = 0;  // until all ops queued so far have run
  // Memory of the host that the device copies to and from at full speed.
  virtual std::shared_ptr<std::byte[]> allocate_host(std::size_t bytes, const std::string& what) = 0;
};

}  // namespace ptrt
