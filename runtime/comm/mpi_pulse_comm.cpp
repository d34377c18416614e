#include "runtime/comm/mpi_pulse_comm.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "runtime/comm/mpi_calls.h"

namespace ptrt {
namespace {

// A failed call is a pulse that does not arrive.
class MpiPulseComm final : public PulseComm {
 public:
  explicit MpiPulseComm(MPI_Comm comm) : comm_(comm) {
    check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
    peers_.resize(static_cast<std::size_t>(size_));
    for (int r = 0; r < size_; r++)
      if (hears(r)) post_receive(r);
    post_end_receive();
  }
  ~MpiPulseComm() override {
    for (Peer& peer : peers_) cancel(peer.receiving);
    cancel(end_receive_);
    static std::vector<std::vector<Peer>> left;  // MPI may still send from them
    left.push_back(std::move(peers_));
  }
  MpiPulseComm(const MpiPulseComm&) = delete;
  MpiPulseComm& operator=(const MpiPulseComm&) = delete;

  int size() const override { return size_; }
  int rank() const override { return rank_; }

  void send(int to, const Pulse& pulse) override {
    Peer& peer = peers_[static_cast<std::size_t>(to)];
    if (!done(peer.sending)) return;
    peer.out = pulse;
    MPI_Isend(&peer.out, sizeof(Pulse), MPI_BYTE, to, kPulseTag, comm_, &peer.sending);
  }

  std::optional<Pulse> receive(int from) override {
    Peer& peer = peers_[static_cast<std::size_t>(from)];
    std::optional<Pulse> newest;
    while (peer.receiving != MPI_REQUEST_NULL && done(peer.receiving)) {
      newest = peer.in;
      post_receive(from);
    }
    return newest;
  }

  // From this rank's memory, which is there until the process ends: so does the job.
  void announce_end() override {
    static int mine;
    mine = rank_;
    for (int to = 0; to < size_; to++) {
      MPI_Request sending = MPI_REQUEST_NULL;
      if (to != rank_ && MPI_Isend(&mine, 1, MPI_INT, to, kEndTag, comm_, &sending) == MPI_SUCCESS)
        MPI_Request_free(&sending);
    }
  }

  int ending_rank() override {
    while (end_receive_ != MPI_REQUEST_NULL && done(end_receive_)) {
      lowest_ending_ = lowest_ending_ < 0 ? end_from_ : std::min(lowest_ending_, end_from_);
      post_end_receive();
    }
    return lowest_ending_;
  }

 private:
  static constexpr int kPulseTag = 0, kEndTag = 1;
  struct Peer {
    Pulse in, out;
    MPI_Request receiving = MPI_REQUEST_NULL, sending = MPI_REQUEST_NULL;
  };

  bool hears(int r) const { return r != rank_ && (r == 0 || rank_ == 0); }
  void post_receive(int from) {
    Peer& peer = peers_[static_cast<std::size_t>(from)];
    MPI_Irecv(&peer.in, sizeof(Pulse), MPI_BYTE, from, kPulseTag, comm_, &peer.receiving);
  }
  void post_end_receive() {
    MPI_Irecv(&end_from_, 1, MPI_INT, MPI_ANY_SOURCE, kEndTag, comm_, &end_receive_);
  }
  static void cancel(MPI_Request& receiving) {
    if (receiving == MPI_REQUEST_NULL) return;
    MPI_Cancel(&receiving);
    MPI_Request_free(&receiving);
  }
  static bool done(MPI_Request& request) {
    int flag = 0;
    return MPI_Test(&request, &flag, MPI_STATUS_IGNORE) == MPI_SUCCESS && flag != 0;
  }

  MPI_Comm comm_;
  int rank_ = 0, size_ = 1;
  std::vector<Peer> peers_;  // [rank]; not resized after its receives are posted
  MPI_Request end_receive_ = MPI_REQUEST_NULL;
  int end_from_ = -1, lowest_ending_ = -1;
};

}  // namespace

std::unique_ptr<PulseComm> make_mpi_pulse_comm(MPI_Comm comm) {
  return std::make_unique<MpiPulseComm>(comm);
}

}  // namespace ptrt
