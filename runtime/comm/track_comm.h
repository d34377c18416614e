// Communication between the hosts of ranks: TrackComm inside the decode loop, JobComm around it. MPI stands
// behind. What devices do among themselves is in kernels/device_collectives.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace ptrt {

// How a rank waits for others inside a TrackComm: with a core of its own it polls without a pause at first,
// and gives way only when the others are long in coming; where ranks outnumber cores it gives way at once.
enum class Waiting { spinning, yielding };

struct Outgoing {
  int to;
  const void* data;
  std::size_t bytes;
};
struct Incoming {
  int from;
  void* data;
  std::size_t bytes;
};

// Memory that all ranks of a host see. Freeing it is collective.
class SharedMemory {
 public:
  virtual ~SharedMemory() = default;
  virtual std::byte* of(int rank) = 0;  // that rank's share of it, at the start of a cache line
};

// The ranks of one replica. Calls are collective, in the same order on all of them; they throw on failure.
class TrackComm {
 public:
  virtual ~TrackComm() = default;
  virtual int size() const = 0;
  virtual int rank() const = 0;
  // recv[r] = rank r's `send`; `bytes` from each rank.
  virtual void all_gather(const void* send, void* recv, std::size_t bytes) = 0;
  // recv[r] = the part of rank r's `send` meant for this rank; `bytes` a part.
  virtual void all_to_all(const void* send, void* recv, std::size_t bytes) = 0;
  // Messages to and from some of the other ranks, at most one a rank and direction, all under way at once.
  // Returns when all are through. A rank that receives knows the size that is sent.
  virtual void exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives) = 0;

  // `bytes` a rank, zero at first. Null where the ranks do not all run on one host, or the system has no such
  // memory left: on all of them, then.
  virtual std::unique_ptr<SharedMemory> share(std::size_t bytes) = 0;
  virtual Waiting waiting() const = 0;
  // For whoever waits for rank `from` without a call of this class: to be called now and then, so that the
  // end of the job is heard of, and once when the wait is over.
  virtual void listen(int from) = 0;
  virtual void listened() {}

  // By any thread: the ranks of the job that a call under way has waited for in vain for a while, for a
  // message; empty where none are, or it is not known.
  virtual std::string late_ranks() { return ""; }
};

// All ranks of the job, for start-up, results and the end; never used by the thread that runs the decode
// loop.
class JobComm {
 public:
  virtual ~JobComm() = default;
  virtual int size() const = 0;
  virtual int rank() const = 0;
  virtual int host_ranks() const = 0;  // ranks on this host, this one included
  virtual int host_rank() const = 0;   // this one among them, from 0
  virtual std::string host() const = 0;

  // These wait asleep, not spinning: other ranks may still be at work on the same cores.
  virtual void barrier() = 0;
  // False when the others have not come within `seconds`; the job can then only be aborted.
  virtual bool barrier_within(double seconds) = 0;
  virtual std::string broadcast(const std::string& from_rank_0) = 0;
  virtual std::vector<std::string> gather(const std::string& mine) = 0;      // on rank 0; empty elsewhere
  virtual std::vector<std::string> all_gather(const std::string& mine) = 0;  // on every rank
  virtual std::vector<std::string> all_gather_on_host(const std::string& mine) = 0;  // by host_rank()
  // Ranks of equal colour, ordered by rank.
  virtual std::unique_ptr<TrackComm> split(int colour, Waiting waiting) = 0;

  // A mailbox to rank 0 for finished results; used by the result threads while the decode loop runs.
  virtual void post(const std::string& message) = 0;   // to rank 0; returns when the message is on its way
  virtual std::optional<std::string> poll_post() = 0;  // on rank 0: a message, if one has come

  // Ends the job on every rank at once. Does not return.
  [[noreturn]] virtual void abort(int exit_code) = 0;
};

std::unique_ptr<TrackComm> make_solo_track_comm();
std::unique_ptr<JobComm> make_solo_job_comm();

}  // namespace ptrt
