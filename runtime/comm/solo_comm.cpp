// A job of one rank: nothing is sent, and MPI is not started.
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "kernels/base/error.h"
#include "runtime/comm/track_comm.h"
#include "runtime/job/heartbeat.h"

namespace ptrt {
namespace {

class SoloTrackComm final : public TrackComm {
 public:
  int size() const override { return 1; }
  int rank() const override { return 0; }
  void all_gather(const void* send, void* recv, std::size_t bytes) override {
    std::memcpy(recv, send, bytes);
  }
  void all_to_all(const void* send, void* recv, std::size_t bytes) override {
    std::memcpy(recv, send, bytes);
  }
  void exchange(std::span<const Outgoing>, std::span<const Incoming>) override {}
  void start(int, std::span<const Outgoing>, std::span<const Incoming>) override {}
  bool poll(int) override { return true; }
  void finish(int) override {}
  std::vector<int> hosts() override { return {0}; }
  std::unique_ptr<SharedMemory> share(std::size_t) override { return nullptr; }
  Waiting waiting() const override { return Waiting::spinning; }
  void listen(int) override {}
};

class SoloJobComm final : public JobComm {
 public:
  int size() const override { return 1; }
  int rank() const override { return 0; }
  int host_ranks() const override { return 1; }
  int host_rank() const override { return 0; }
  std::string host() const override {
    char name[256] = {};
    return gethostname(name, sizeof name - 1) == 0 ? name : "localhost";
  }
  void barrier() override {}
  bool barrier_within(double) override { return true; }
  std::string broadcast(const std::string& text) override { return text; }
  std::vector<std::string> gather(const std::string& mine) override { return {mine}; }
  std::vector<std::string> all_gather(const std::string& mine) override { return {mine}; }
  std::vector<std::string> all_gather_on_host(const std::string& mine) override { return {mine}; }
  std::unique_ptr<TrackComm> split(int, Waiting) override { return make_solo_track_comm(); }
  bool post(const std::string&, Post, const std::function<bool()>&) override {
    throw_failure("a job of one rank has no other rank to post from");
  }
  void send(int, std::string) override { throw_failure("a job of one rank has no other rank to send to"); }
  std::optional<Mail> poll_post() override { return std::nullopt; }
  [[noreturn]] void abort(int exit_code) override { std::_Exit(exit_code); }
};

}  // namespace

std::unique_ptr<PulseComm> JobComm::make_pulse_comm() {
  return nullptr;
}

std::unique_ptr<TrackComm> make_solo_track_comm() {
  return std::make_unique<SoloTrackComm>();
}
std::unique_ptr<JobComm> make_solo_job_comm() {
  return std::make_unique<SoloJobComm>();
}

}  // namespace ptrt
