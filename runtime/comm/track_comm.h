// Communication between the hosts of ranks, over MPI: TrackComm inside the decode loop, JobComm
// around it. Collectives between devices are in kernels/device_collectives.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace ptrt {

class PulseComm;
class Watchdog;

// How a rank waits for others inside a TrackComm. With a core of its own it spins at first, and
// yields only when the others are late; where ranks outnumber cores it yields at once.
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
  // The share of a rank of this host (by its rank in the group), aligned to a cache line.
  virtual std::byte* of(int rank) = 0;
};

// A group of ranks. Calls are collective, in the same order on all of them; they throw on failure.
class TrackComm {
 public:
  virtual ~TrackComm() = default;
  virtual int size() const = 0;
  virtual int rank() const = 0;
  // recv[r] = rank r's `send`; `bytes` from each rank.
  virtual void all_gather(const void* send, void* recv, std::size_t bytes) = 0;
  // recv[r] = the part of rank r's `send` meant for this rank; `bytes` a part.
  virtual void all_to_all(const void* send, void* recv, std::size_t bytes) = 0;
  // Messages to and from some of the other ranks, at most one a rank and direction, all in flight
  // at once. Returns when all have been sent and received. Sender and receiver give the same size.
  virtual void exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives) = 0;

  // exchange() for a caller that computes meanwhile: up to kTransfers may be in flight at once,
  // by number, and other calls may come between. All ranks start those of one number in the same
  // order. Until it ends, by poll() or finish(), its memory belongs to the transfer.
  static constexpr int kTransfers = 2;
  virtual void start(int transfer, std::span<const Outgoing> sends, std::span<const Incoming> receives) = 0;
  // Moves what can be moved now; true, and the transfer has ended, when all is sent and received.
  virtual bool poll(int transfer) = 0;
  virtual void finish(int transfer) = 0;  // waits for it
  // After a failure: forgets what is in flight. MPI may move its bytes until the process ends.
  virtual void drop_transfers() {}

  // [rank] the lowest rank on that rank's host.
  virtual std::vector<int> hosts() = 0;
  // `bytes` a rank, zeroed, shared by the ranks of each host. Null, on all ranks, where a host has no
  // such memory left.
  virtual std::unique_ptr<SharedMemory> share(std::size_t bytes) = 0;
  virtual Waiting waiting() const = 0;
  // For a caller that waits for rank `from` by other means: call listen() every few milliseconds,
  // so that the end of the job is noticed, and listened() once when the wait is over.
  virtual void listen(int from) = 0;
  virtual void listened() {}

  // May be called by any thread. The ranks of the job that a call in flight has waited for in vain
  // for a while, for a message; empty where there are none, or they are not known.
  virtual std::string late_ranks() { return ""; }
};

// All ranks of the job, for start-up, results and the end; never used by the thread that runs the
// decode loop. Calls are collective unless they say otherwise, and throw on failure.
class JobComm {
 public:
  virtual ~JobComm() = default;
  virtual int size() const = 0;
  virtual int rank() const = 0;
  virtual int host_ranks() const = 0;  // ranks on this host, this one included
  virtual int host_rank() const = 0;   // this one among them, from 0
  virtual std::string host() const = 0;

  // These sleep while they wait: other ranks may still compute on the same cores.
  virtual void barrier() = 0;
  // False when the others have not called it within `seconds`; the job can then only be aborted.
  virtual bool barrier_within(double seconds) = 0;
  virtual std::string broadcast(const std::string& from_rank_0) = 0;
  virtual std::vector<std::string> gather(const std::string& mine) = 0;      // on rank 0; empty elsewhere
  virtual std::vector<std::string> all_gather(const std::string& mine) = 0;  // on every rank
  virtual std::vector<std::string> all_gather_on_host(const std::string& mine) = 0;  // by host_rank()
  // Ranks of equal colour, ordered by rank.
  virtual std::unique_ptr<TrackComm> split(int colour, Waiting waiting) = 0;

  // A mailbox between rank 0 and the others, for requests and finished results; used by the result
  // threads while the decode loop runs. Not collective.
  // Returns true when the message is sent to rank 0, or `taken` by it. Returns false when give_up()
  // turns true before; the message may then arrive or not.
  enum class Post { sent, taken };
  virtual bool post(const std::string& message, Post until, const std::function<bool()>& give_up) = 0;
  // From rank 0 to another one, without waiting: poll_post() moves it on.
  virtual void send(int to, std::string message) = 0;
  struct Mail {
    int from = 0;
    std::string text;
  };
  // A message, if one has arrived: on rank 0 a post, elsewhere one that rank 0 sent.
  virtual std::optional<Mail> poll_post() = 0;

  // For the watchdog's signs of life (runtime/job/heartbeat.h); null for a rank alone.
  virtual std::unique_ptr<PulseComm> make_pulse_comm();
  // That of the job, from its start to its end; null where it has none.
  virtual Watchdog* watchdog() { return nullptr; }

  // Ends the job on every rank at once, whatever the state of MPI. Does not return.
  [[noreturn]] virtual void abort(int exit_code) = 0;
};

std::unique_ptr<TrackComm> make_solo_track_comm();
std::unique_ptr<JobComm> make_solo_job_comm();

}  // namespace ptrt
