#include "runtime/comm/watched_comm.h"

#include <cstdlib>
#include <exception>
#include <functional>
#include <optional>
#include <utility>

#include "runtime/job/heartbeat.h"

namespace ptrt {
namespace {

// A wait of the thread that runs the rank, from here to the end of the block.
class Waits {
 public:
  Waits(Watchdog& watchdog, const Watchdog::Wait& wait) : watchdog_(watchdog) { watchdog_.wait_begins(wait); }
  ~Waits() { watchdog_.wait_ends(); }
  Waits(const Waits&) = delete;
  Waits& operator=(const Waits&) = delete;

 private:
  Watchdog& watchdog_;
};

class WatchedComm final : public TrackComm {
 public:
  WatchedComm(std::unique_ptr<TrackComm> inner, Watchdog& watchdog, const char* others)
      : inner_(std::move(inner)), watchdog_(watchdog), wait_{others, &*inner_} {}
  ~WatchedComm() override { watchdog_.forget_waits(); }
  WatchedComm(const WatchedComm&) = delete;
  WatchedComm& operator=(const WatchedComm&) = delete;

  int size() const override { return inner_->size(); }
  int rank() const override { return inner_->rank(); }
  void all_gather(const void* send, void* recv, std::size_t bytes) override {
    const Waits waits(watchdog_, wait_);
    inner_->all_gather(send, recv, bytes);
  }
  void all_to_all(const void* send, void* recv, std::size_t bytes) override {
    const Waits waits(watchdog_, wait_);
    inner_->all_to_all(send, recv, bytes);
  }
  void exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives) override {
    const Waits waits(watchdog_, wait_);
    inner_->exchange(sends, receives);
  }
  void start(int transfer, std::span<const Outgoing> sends, std::span<const Incoming> receives) override {
    inner_->start(transfer, sends, receives);
  }
  bool poll(int transfer) override { return inner_->poll(transfer); }
  void finish(int transfer) override {
    const Waits waits(watchdog_, wait_);
    inner_->finish(transfer);
  }
  void drop_transfers() override { inner_->drop_transfers(); }
  std::vector<int> hosts() override { return inner_->hosts(); }
  std::unique_ptr<SharedMemory> share(std::size_t bytes) override {
    const Waits waits(watchdog_, wait_);
    return inner_->share(bytes);
  }
  Waiting waiting() const override { return inner_->waiting(); }
  void listen(int from) override {
    if (!listens_) watchdog_.wait_begins(wait_);
    listens_ = true;
    inner_->listen(from);
  }
  void listened() override {
    inner_->listened();
    watchdog_.wait_ends();
    listens_ = false;
  }
  std::string late_ranks() override { return inner_->late_ranks(); }

 private:
  bool listens_ = false;
  std::unique_ptr<TrackComm> inner_;
  Watchdog& watchdog_;
  Watchdog::Wait wait_;
};

class WatchedJob final : public JobComm {
 public:
  WatchedJob(std::unique_ptr<JobComm> inner, Watchdog& watchdog)
      : inner_(std::move(inner)), watchdog_(watchdog) {
    std::vector<std::string> hosts = inner_->all_gather(inner_->host());
    if (auto pulses = inner_->make_pulse_comm())
      watchdog_.begin_heartbeat(std::move(pulses), std::move(hosts));
    watchdog_.enter("starting");
  }
  ~WatchedJob() override {
    watchdog_.enter("ending");
    if (std::uncaught_exceptions() == 0) {
      try {
        barrier();  // with signs of life, which MPI's own end is without
      } catch (...) {
      }
    }
    watchdog_.end_heartbeat();
    watchdog_.enter("ending MPI", Watchdog::Phase::waiting);
    inner_.reset();
    watchdog_.stop();
  }
  WatchedJob(const WatchedJob&) = delete;
  WatchedJob& operator=(const WatchedJob&) = delete;

  int size() const override { return inner_->size(); }
  int rank() const override { return inner_->rank(); }
  int host_ranks() const override { return inner_->host_ranks(); }
  int host_rank() const override { return inner_->host_rank(); }
  std::string host() const override { return inner_->host(); }
  void barrier() override {
    const Waits waits(watchdog_, wait_);
    inner_->barrier();
  }
  bool barrier_within(double seconds) override {
    const Waits waits(watchdog_, wait_);
    return inner_->barrier_within(seconds);
  }
  std::string broadcast(const std::string& from_rank_0) override {
    const Waits waits(watchdog_, wait_);
    return inner_->broadcast(from_rank_0);
  }
  std::vector<std::string> gather(const std::string& mine) override {
    const Waits waits(watchdog_, wait_);
    return inner_->gather(mine);
  }
  std::vector<std::string> all_gather(const std::string& mine) override {
    const Waits waits(watchdog_, wait_);
    return inner_->all_gather(mine);
  }
  std::vector<std::string> all_gather_on_host(const std::string& mine) override {
    const Waits waits(watchdog_, wait_);
    return inner_->all_gather_on_host(mine);
  }
  std::unique_ptr<TrackComm> split(int colour, Waiting waiting) override {
    const Waits waits(watchdog_, wait_);
    return inner_->split(colour, waiting);
  }
  // By other threads, beside the waits above.
  bool post(const std::string& message, Post until, const std::function<bool()>& give_up) override {
    return inner_->post(message, until, give_up);
  }
  void send(int to, std::string message) override { inner_->send(to, std::move(message)); }
  std::optional<Mail> poll_post() override { return inner_->poll_post(); }
  std::unique_ptr<PulseComm> make_pulse_comm() override { return inner_->make_pulse_comm(); }
  Watchdog* watchdog() override { return &watchdog_; }
  [[noreturn]] void abort(int exit_code) override {
    inner_->abort(exit_code);
    std::_Exit(exit_code);
  }

 private:
  std::unique_ptr<JobComm> inner_;
  Watchdog& watchdog_;
  Watchdog::Wait wait_{"the other ranks", nullptr};
};

}  // namespace

std::unique_ptr<TrackComm> make_watched_comm(std::unique_ptr<TrackComm> inner, Watchdog& watchdog,
                                             const char* others) {
  return std::make_unique<WatchedComm>(std::move(inner), watchdog, others);
}

std::unique_ptr<JobComm> make_watched_job(std::unique_ptr<JobComm> inner, Watchdog& watchdog) {
  return std::make_unique<WatchedJob>(std::move(inner), watchdog);
}

}  // namespace ptrt
