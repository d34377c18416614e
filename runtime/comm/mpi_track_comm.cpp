#include "runtime/comm/mpi_track_comm.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstddef>
#include <cstring>
#include <exception>
#include <mutex>
#include <set>
#include <thread>

#include "kernels/base/error.h"
#include "runtime/comm/mpi_calls.h"

namespace ptrt {
namespace {

using Clock = std::chrono::steady_clock;

// A rank with a core of its own polls this long before it yields: far longer than a message takes,
// far shorter than a scheduler's time slice.
constexpr Clock::duration kSpin = std::chrono::microseconds(100);
constexpr Clock::duration kLate = std::chrono::milliseconds(200);  // then a rank counts as late

// Below the libraries' eager limit between hosts (Open MPI over TCP: 64 KiB).
constexpr std::size_t kEagerBytes = 60 * 1024;

class MpiSharedMemory final : public SharedMemory {
 public:
  // Takes ownership of the window of a host's ranks. ranks[r]: rank r of the host's in the group.
  MpiSharedMemory(MPI_Win window, const std::vector<int>& ranks, int group_size)
      : window_(window), bases_(static_cast<std::size_t>(group_size)) {
    for (int r = 0; r < static_cast<int>(ranks.size()); r++) {
      MPI_Aint size = 0;
      int unit = 0;
      void* base = nullptr;
      check_mpi(MPI_Win_shared_query(window_, r, &size, &unit, &base), "MPI_Win_shared_query");
      void* aligned = base;
      std::size_t space = static_cast<std::size_t>(size);
      bases_[static_cast<std::size_t>(ranks[static_cast<std::size_t>(r)])] =
          static_cast<std::byte*>(std::align(kCacheLine, 1, aligned, space));
    }
  }
  ~MpiSharedMemory() override {
    if (std::uncaught_exceptions() == 0) MPI_Win_free(&window_);
  }
  std::byte* of(int rank) override { return bases_[static_cast<std::size_t>(rank)]; }

  static constexpr std::size_t kCacheLine = 64;

 private:
  MPI_Win window_;
  std::vector<std::byte*> bases_;  // by rank in the group; null on other hosts
};

// Every rank sends to the others directly, with requests of its own instead of MPI's collectives:
// so how a rank waits is decided here, whatever the MPI library's settings. Messages to other hosts
// are cut into pieces that a library sends eagerly; for larger ones it waits for the receiver's
// answer first.
class MpiTrackComm final : public TrackComm {
 public:
  MpiTrackComm(MPI_Comm comm, Waiting waiting, std::vector<int> job_ranks)
      : comm_(comm),
        waiting_(waiting),
        job_ranks_(std::move(job_ranks)),
        host_(ranks_of_host(comm_)),
        hosts_(name_hosts()),
        all_on_host_(host_.size() == size()) {
    for (int tag = 0; Batch & batch : batches_) {
      batch.tag = tag++;
      batch.requests.reserve(64);
      batch.peers.reserve(64);
    }
  }
  int size() const override { return comm_.size(); }
  int rank() const override { return comm_.rank(); }
  Waiting waiting() const override { return waiting_; }
  // Any call makes the library process its events, such as a lost launcher.
  void listen(int from) override {
    int here = 0;
    check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm_.get(), &here, MPI_STATUS_IGNORE), "MPI_Iprobe");
    const std::lock_guard lock(mutex_);
    late_ = {from};
  }
  void listened() override {
    const std::lock_guard lock(mutex_);
    late_.clear();
  }
  std::string late_ranks() override {
    const std::lock_guard lock(mutex_);
    if (late_.empty()) return "";
    std::vector<int> in_job;
    for (const int rank_of_group : late_)
      in_job.push_back(job_ranks_[static_cast<std::size_t>(rank_of_group)]);
    std::ranges::sort(in_job);
    return fmt::format("rank{} {}", in_job.size() > 1 ? "s" : "", fmt::join(in_job, ", "));
  }

  void all_gather(const void* send, void* recv, std::size_t bytes) override {
    to_everyone(send, recv, bytes, 0);
  }
  void all_to_all(const void* send, void* recv, std::size_t bytes) override {
    to_everyone(send, recv, bytes, bytes);
  }
  void exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives) override {
    start(kTransfers, sends, receives);
    wait_for_all(blocking());
  }
  void start(int transfer, std::span<const Outgoing> sends, std::span<const Incoming> receives) override {
    Batch& batch = batches_[transfer];
    PTRT_CHECK(batch.requests.empty());
    for (const Incoming& message : receives) receive(batch, message);
    for (const Outgoing& message : sends) this->send(batch, message);
  }
  // A test moves at most one piece a peer, so it is repeated as long as pieces come.
  bool poll(int transfer) override {
    Batch& batch = batches_[transfer];
    done_.resize(batch.requests.size());
    for (int count = 1; count > 0;)
      check_mpi(MPI_Testsome(static_cast<int>(batch.requests.size()), batch.requests.data(), &count,
                             done_.data(), MPI_STATUSES_IGNORE),
                "MPI_Testsome");
    if (std::ranges::any_of(batch.requests, [](MPI_Request r) { return r != MPI_REQUEST_NULL; }))
      return false;
    batch.clear();
    return true;
  }
  void finish(int transfer) override { wait_for_all(batches_[transfer]); }
  void drop_transfers() override {
    for (Batch& batch : batches_) {
      for (MPI_Request& request : batch.requests) {
        if (request == MPI_REQUEST_NULL) continue;
        MPI_Cancel(&request);
        MPI_Request_free(&request);
      }
      batch.clear();
    }
  }

  std::vector<int> hosts() override { return hosts_; }
  std::unique_ptr<SharedMemory> share(std::size_t bytes) override {
    std::byte* mine = nullptr;
    MPI_Win window = MPI_WIN_NULL;
    bytes += MpiSharedMemory::kCacheLine;  // for aligning
    int made = MPI_Win_allocate_shared(static_cast<MPI_Aint>(bytes), 1, MPI_INFO_NULL, host_.get(), &mine,
                                       &window) == MPI_SUCCESS;
    check_mpi(MPI_Allreduce(MPI_IN_PLACE, &made, 1, MPI_INT, MPI_MIN, comm_.get()), "MPI_Allreduce");
    if (made == 0) return nullptr;  // a window that some ranks have cannot be freed; it lasts as long as they
    check_mpi(MPI_Win_set_errhandler(window, MPI_ERRORS_RETURN), "MPI_Win_set_errhandler");
    std::memset(mine, 0, bytes);
    check_mpi(MPI_Barrier(comm_.get()), "MPI_Barrier");
    std::vector<int> ranks;
    for (int r = 0; r < size(); r++)
      if (on_my_host(r)) ranks.push_back(r);
    return std::make_unique<MpiSharedMemory>(window, ranks, size());
  }

 private:
  // The requests of one transfer, receives before sends, and the other rank of each. The transfer's
  // number is the tag of its messages, since transfers may overtake each other.
  struct Batch {
    int tag = 0;
    std::vector<MPI_Request> requests;
    std::vector<int> peers;
    void clear() {
      requests.clear();
      peers.clear();
    }
  };
  Batch& blocking() { return batches_[kTransfers]; }

  static MPI_Comm ranks_of_host(const Communicator& comm) {
    MPI_Comm found = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split_type(comm.get(), MPI_COMM_TYPE_SHARED, comm.rank(), MPI_INFO_NULL, &found),
              "MPI_Comm_split_type");
    return found;
  }
  std::vector<int> name_hosts() {
    int name = rank();
    check_mpi(MPI_Bcast(&name, 1, MPI_INT, 0, host_.get()), "MPI_Bcast");
    std::vector<int> names(static_cast<std::size_t>(size()));
    check_mpi(MPI_Allgather(&name, 1, MPI_INT, names.data(), 1, MPI_INT, comm_.get()), "MPI_Allgather");
    return names;
  }
  bool on_my_host(int other) const {
    return hosts_[static_cast<std::size_t>(other)] == hosts_[static_cast<std::size_t>(rank())];
  }

  // Sends `bytes` from send + r · stride to each rank r. Two calls in a row cannot mix: messages
  // between two ranks keep their order.
  void to_everyone(const void* send, void* recv, std::size_t bytes, std::size_t stride) {
    const int ranks = size();
    const auto* from = static_cast<const std::byte*>(send);
    auto* to = static_cast<std::byte*>(recv);
    for (int distance = 1; distance < ranks; distance++) {
      const int source = (rank() + ranks - distance) % ranks;
      receive(blocking(), {source, to + static_cast<std::size_t>(source) * bytes, bytes});
    }
    for (int distance = 1; distance < ranks; distance++) {
      const int target = (rank() + distance) % ranks;
      this->send(blocking(), {target, from + static_cast<std::size_t>(target) * stride, bytes});
    }
    std::memcpy(to + static_cast<std::size_t>(rank()) * bytes,
                from + static_cast<std::size_t>(rank()) * stride, bytes);
    wait_for_all(blocking());
  }

  std::size_t piece_bytes(int rank) const { return on_my_host(rank) ? std::size_t{INT_MAX} : kEagerBytes; }

  void receive(Batch& batch, const Incoming& message) {
    auto* to = static_cast<std::byte*>(message.data);
    in_pieces(batch, message.from, message.bytes, [&](std::size_t at, int count, MPI_Request* request) {
      check_mpi(MPI_Irecv(to + at, count, MPI_BYTE, message.from, batch.tag, comm_.get(), request),
                "MPI_Irecv");
    });
  }

  void send(Batch& batch, const Outgoing& message) {
    const auto* from = static_cast<const std::byte*>(message.data);
    in_pieces(batch, message.to, message.bytes, [&](std::size_t at, int count, MPI_Request* request) {
      check_mpi(MPI_Isend(from + at, count, MPI_BYTE, message.to, batch.tag, comm_.get(), request),
                "MPI_Isend");
    });
  }

  // begin(first byte, bytes, request) for each piece of a message from or to `peer`.
  template <typename Begin>
  void in_pieces(Batch& batch, int peer, std::size_t bytes, const Begin& begin) {
    const std::size_t piece = piece_bytes(peer);
    for (std::size_t at = 0; at < bytes; at += piece) {
      batch.peers.push_back(peer);
      begin(at, to_mpi_count(std::min(piece, bytes - at)), &batch.requests.emplace_back(MPI_REQUEST_NULL));
    }
  }

  void wait_for_all(Batch& batch) {
    std::vector<MPI_Request>& requests = batch.requests;
    const bool spins = waiting_ == Waiting::spinning && all_on_host_;
    const auto start = Clock::now();
    const auto start_yielding = start + (spins ? kSpin : Clock::duration::zero());
    for (int done = 0;;) {
      check_mpi(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE),
                "MPI_Testall");
      if (done) break;
      const auto now = Clock::now();
      if (now >= start + kLate) {
        wait_and_note_late_ranks(batch);
        break;
      }
      if (now >= start_yielding) std::this_thread::yield();
    }
    batch.clear();
  }

  // Receives messages one by one, so that late_ranks() knows whose are missing. A stopped rank
  // receives none either.
  void wait_and_note_late_ranks(Batch& batch) {
    done_.resize(batch.requests.size());
    for (int count = 0; count != MPI_UNDEFINED; std::this_thread::yield()) {
      note_late_ranks(batch);
      check_mpi(MPI_Testsome(static_cast<int>(batch.requests.size()), batch.requests.data(), &count,
                             done_.data(), MPI_STATUSES_IGNORE),
                "MPI_Testsome");
    }
  }

  void note_late_ranks(const Batch& batch) {
    const std::lock_guard lock(mutex_);
    late_.clear();
    for (std::size_t i = 0; i < batch.requests.size(); i++)
      if (batch.requests[i] != MPI_REQUEST_NULL) late_.insert(batch.peers[i]);
  }

  Communicator comm_;
  Waiting waiting_;
  std::vector<int> job_ranks_;
  Communicator host_;       // the ranks of this host
  std::vector<int> hosts_;  // [rank] the lowest rank on its host
  // Else a message takes so much longer than a yield that spinning gains nothing.
  bool all_on_host_;
  Batch batches_[kTransfers + 1];  // the last one for calls that wait
  std::vector<int> done_;          // scratch of MPI_Testsome
  std::mutex mutex_;               // protects late_, which the watchdog reads
  std::set<int> late_;
};

}  // namespace

std::unique_ptr<TrackComm> make_mpi_track_comm(MPI_Comm comm, Waiting waiting, std::vector<int> job_ranks) {
  return std::make_unique<MpiTrackComm>(comm, waiting, std::move(job_ranks));
}

}  // namespace ptrt
