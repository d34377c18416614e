#include "runtime/comm/mpi_pulse_comm.h"

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
  }
  ~MpiPulseComm() override {
    for (Peer& peer : peers_) {
      if (peer.receiving == MPI_REQUEST_NULL) continue;
      MPI_Cancel(&peer.receiving);
      MPI_Request_free(&peer.receiving);
    }
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
    MPI_Isend(&peer.out, sizeof(Pulse), MPI_BYTE, to, 0, comm_, &peer.sending);
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

 private:
  struct Peer {
    Pulse in, out;
    MPI_Request receiving = MPI_REQUEST_NULL, sending = MPI_REQUEST_NULL;
  };

  bool hears(int r) const { return r != rank_ && (r == 0 || rank_ == 0); }
  void post_receive(int from) {
    Peer& peer = peers_[static_cast<std::size_t>(from)];
    MPI_Irecv(&peer.in, sizeof(Pulse), MPI_BYTE, from, 0, comm_, &peer.receiving);
  }
  static bool done(MPI_Request& request) {
    int flag = 0;
    return MPI_Test(&request, &flag, MPI_STATUS_IGNORE) == MPI_SUCCESS && flag != 0;
  }

  MPI_Comm comm_;
  int rank_ = 0, size_ = 1;
  std::vector<Peer> peers_;  // [rank]; not resized after its receives are posted
};

}  // namespace

std::unique_ptr<PulseComm> make_mpi_pulse_comm(MPI_Comm comm) {
  return std::make_unique<MpiPulseComm>(comm);
}

}  // namespace ptrt
