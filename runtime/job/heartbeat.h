// Signs of life between the ranks of a job, sent by the threads of their watchdogs: every rank sends to rank 0,
// and rank 0 sends to every rank. A rank that is stopped, or whose host is cut off, sends none.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace ptrt {

// From a rank: its own work. From rank 0: the work of all ranks, and the lowest rank that is silent.
struct Pulse {
  std::uint64_t work = 0;    // grows with it
  std::int32_t silent = -1;  // none
  float silent_for = 0;      // seconds
};

// Carries pulses. Used by one thread; no call waits for another rank.
class PulseComm {
 public:
  virtual ~PulseComm() = default;
  virtual int size() const = 0;
  virtual int rank() const = 0;
  // Does nothing while the last pulse to that rank still travels.
  virtual void send(int to, const Pulse& pulse) = 0;
  // The newest pulse from that rank, if any came since the last call.
  virtual std::optional<Pulse> receive(int from) = 0;
  // Tells every rank that this one reports a failure and ends the job.
  virtual void announce_end() = 0;
  // The lowest of the other ranks whose announcement has come; -1: none.
  virtual int ending_rank() = 0;
};

class Heartbeat {
 public:
  // hosts[r]: of rank r, for messages.
  Heartbeat(std::unique_ptr<PulseComm> comm, std::vector<std::string> hosts, double period_s);

  // Takes the pulses that have come and, once a period, sends this rank's. `work` as in Pulse.
  void beat(std::uint64_t work);
  // Every rank counts as heard from just now: after this process was suspended.
  void restart();

  // How long the most silent rank has been silent, in seconds. Rank 0 hears the others itself; they hear
  // rank 0 and know the rest from it.
  double silence() const;
  // "rank 2 (host)" or "ranks 4, 5 (host)": those silent for at least so many seconds.
  std::string silent_ranks(double at_least_s) const;
  // Seconds since any rank of the job was last known to work.
  double since_work() const;

  // As in PulseComm.
  void announce_end() { comm_->announce_end(); }
  int ending_rank() { return comm_->ending_rank(); }

 private:
  int lowest_silent() const;
  double silence_of(int rank) const;
  Pulse pulse_of_rank_0(std::uint64_t work) const;

  std::unique_ptr<PulseComm> comm_;
  std::vector<std::string> hosts_;
  std::int64_t period_ns_;
  std::int64_t sent_ns_ = 0;
  std::vector<std::int64_t> heard_ns_;  // [rank]; rank 0 uses all, the others rank 0's alone
  std::vector<std::uint64_t> work_;     // [rank], as last heard
  std::int64_t worked_ns_;              // when any of work_ last grew
  Pulse told_;                          // by rank 0, on the others
  std::int64_t told_ns_;
};

}  // namespace ptrt
