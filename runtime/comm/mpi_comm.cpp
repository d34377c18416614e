#include "runtime/comm/mpi_comm.h"

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <functional>
#include <limits>
#include <list>
#include <optional>
#include <thread>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/progress.h"
#include "runtime/comm/mpi_calls.h"
#include "runtime/comm/mpi_pulse_comm.h"
#include "runtime/comm/mpi_track_comm.h"
#include "runtime/job/reporter.h"

namespace ptrt {
namespace {

using Clock = std::chrono::steady_clock;

constexpr Clock::duration kBrief = std::chrono::milliseconds(1);  // waits too short for a sleep
constexpr Clock::duration kAbortLimit = std::chrono::seconds(2);
constexpr Clock::duration kNap = std::chrono::microseconds(200);

// Waits for a call outside the decode loop at little cost to other threads on this core: yields at
// first, then sleeps between tests. False when give_up(), which gets the time waited, turns true first.
template <typename GiveUp>
bool wait_politely_until(MPI_Request request, const GiveUp& give_up) {
  const auto start = Clock::now();
  for (int done = 0;;) {
    check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (done) return true;
    const auto waited = Clock::now() - start;
    if (give_up(waited)) return false;
    if (waited < kBrief)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(kNap);
  }
}

// False when it took longer than `seconds`.
bool wait_politely(MPI_Request request, double seconds = std::numeric_limits<double>::infinity()) {
  return wait_politely_until(request, [seconds](Clock::duration waited) {
    return std::chrono::duration<double>(waited).count() > seconds;
  });
}

MPI_Comm duplicate(MPI_Comm comm) {
  MPI_Comm copy = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(comm, &copy), "MPI_Comm_dup");
  return copy;
}

// Texts of several ranks as MPI puts them together.
struct JoinedTexts {
  std::vector<int> counts, offsets;  // by rank
  std::string text;

  explicit JoinedTexts(int ranks)
      : counts(static_cast<std::size_t>(ranks)), offsets(static_cast<std::size_t>(ranks)) {}
  void make_room() {
    std::size_t total = 0;
    for (std::size_t r = 0; r < counts.size(); r++) {
      offsets[r] = to_mpi_count(total);
      total += static_cast<std::size_t>(counts[r]);
    }
    to_mpi_count(total);
    text.resize(total);
  }
  std::vector<std::string> split() const {
    std::vector<std::string> texts;
    for (std::size_t r = 0; r < counts.size(); r++)
      texts.push_back(text.substr(static_cast<std::size_t>(offsets[r]), static_cast<std::size_t>(counts[r])));
    return texts;
  }
};

std::vector<std::string> gather_texts(const Communicator& comm, const std::string& mine) {
  JoinedTexts all(comm.size());
  const int count = to_mpi_count(mine.size());
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Iallgather(&count, 1, MPI_INT, all.counts.data(), 1, MPI_INT, comm.get(), &request),
            "MPI_Iallgather");
  wait_politely(request);
  all.make_room();
  check_mpi(MPI_Iallgatherv(mine.data(), count, MPI_BYTE, all.text.data(), all.counts.data(),
                            all.offsets.data(), MPI_BYTE, comm.get(), &request),
            "MPI_Iallgatherv");
  wait_politely(request);
  return all.split();
}

// On rank 0; empty elsewhere.
std::vector<std::string> gather_on_first(const Communicator& comm, const std::string& mine) {
  JoinedTexts all(comm.rank() == 0 ? comm.size() : 0);
  const int count = to_mpi_count(mine.size());
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Igather(&count, 1, MPI_INT, all.counts.data(), 1, MPI_INT, 0, comm.get(), &request),
            "MPI_Igather");
  wait_politely(request);
  all.make_room();
  check_mpi(MPI_Igatherv(mine.data(), count, MPI_BYTE, all.text.data(), all.counts.data(), all.offsets.data(),
                         MPI_BYTE, 0, comm.get(), &request),
            "MPI_Igatherv");
  wait_politely(request);
  return all.split();
}

class MpiJobComm final : public JobComm {
 public:
  MpiJobComm() : job_(duplicate(MPI_COMM_WORLD)), mail_(duplicate(MPI_COMM_WORLD)) {
    MPI_Comm on_host = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split_type(job_.get(), MPI_COMM_TYPE_SHARED, job_.rank(), MPI_INFO_NULL, &on_host),
              "MPI_Comm_split_type");
    host_.emplace(on_host);
  }

  int size() const override { return job_.size(); }
  int rank() const override { return job_.rank(); }
  int host_ranks() const override { return host_->size(); }
  int host_rank() const override { return host_->rank(); }
  std::string host() const override {
    char name[MPI_MAX_PROCESSOR_NAME] = {};
    int length = 0;
    MPI_Get_processor_name(name, &length);
    return {name, static_cast<std::size_t>(length)};
  }

  void barrier() override { barrier_within(std::numeric_limits<double>::infinity()); }

  bool barrier_within(double seconds) override {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Ibarrier(job_.get(), &request), "MPI_Ibarrier");
    return wait_politely(request, seconds);
  }

  std::string broadcast(const std::string& from_rank_0) override {
    std::string text = rank() == 0 ? from_rank_0 : std::string();
    unsigned long long length = text.size();
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Ibcast(&length, 1, MPI_UNSIGNED_LONG_LONG, 0, job_.get(), &request), "MPI_Ibcast");
    wait_politely(request);
    text.resize(length);
    constexpr std::size_t kPiece = std::size_t{1} << 30;  // MPI counts are ints
    for (std::size_t at = 0; at < text.size(); at += kPiece) {
      const auto count = static_cast<int>(std::min(kPiece, text.size() - at));
      check_mpi(MPI_Ibcast(text.data() + at, count, MPI_BYTE, 0, job_.get(), &request), "MPI_Ibcast");
      wait_politely(request);
      note_progress();
    }
    return text;
  }

  std::vector<std::string> gather(const std::string& mine) override { return gather_on_first(job_, mine); }

  std::vector<std::string> all_gather(const std::string& mine) override { return gather_texts(job_, mine); }
  std::vector<std::string> all_gather_on_host(const std::string& mine) override {
    return gather_texts(*host_, mine);
  }

  std::unique_ptr<TrackComm> split(int colour, Waiting waiting) override {
    MPI_Comm part = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split(job_.get(), colour, rank(), &part), "MPI_Comm_split");
    int ranks = 0;
    check_mpi(MPI_Comm_size(part, &ranks), "MPI_Comm_size");
    std::vector<int> job_ranks(static_cast<std::size_t>(ranks));
    const int mine = rank();
    check_mpi(MPI_Allgather(&mine, 1, MPI_INT, job_ranks.data(), 1, MPI_INT, part), "MPI_Allgather");
    return make_mpi_track_comm(part, waiting, std::move(job_ranks));
  }

  bool post(const std::string& message, Post until, const std::function<bool()>& give_up) override {
    // MPI may still read a message that was given up, so that one is never freed.
    auto kept = std::make_unique<std::string>(message);
    MPI_Request request = MPI_REQUEST_NULL;
    const auto send = until == Post::taken ? MPI_Issend : MPI_Isend;
    check_mpi(send(kept->data(), to_mpi_count(kept->size()), MPI_BYTE, 0, 0, mail_.get(), &request),
              "MPI_Isend");
    if (wait_politely_until(request, [&](Clock::duration) { return give_up(); })) {
      note_progress();
      return true;
    }
    [[maybe_unused]] const std::string* const given_up = kept.release();
    return false;
  }

  void send(int to, std::string message) override {
    Sending& sending = outbox_.emplace_back();
    sending.message = std::move(message);
    check_mpi(MPI_Isend(sending.message.data(), to_mpi_count(sending.message.size()), MPI_BYTE, to, 0,
                        mail_.get(), &sending.request),
              "MPI_Isend");
  }

  std::optional<Mail> poll_post() override {
    clear_outbox();
    int here = 0;
    MPI_Status status;
    check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, 0, mail_.get(), &here, &status), "MPI_Iprobe");
    if (!here) return std::nullopt;
    int count = 0;
    check_mpi(MPI_Get_count(&status, MPI_BYTE, &count), "MPI_Get_count");
    std::string message(static_cast<std::size_t>(count), '\0');
    check_mpi(MPI_Recv(message.data(), count, MPI_BYTE, status.MPI_SOURCE, 0, mail_.get(), MPI_STATUS_IGNORE),
              "MPI_Recv");
    note_progress();
    return Mail{status.MPI_SOURCE, std::move(message)};
  }

  std::unique_ptr<PulseComm> make_pulse_comm() override {
    return size() > 1 ? make_mpi_pulse_comm(duplicate(job_.get())) : nullptr;
  }

  [[noreturn]] void abort(int exit_code) override { end_job_now(exit_code); }

 private:
  // A message of send(), at the place that MPI reads it from.
  struct Sending {
    std::string message;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  // Frees the messages that have been sent.
  void clear_outbox() {
    std::erase_if(outbox_, [](Sending& sending) {
      int done = 0;
      check_mpi(MPI_Test(&sending.request, &done, MPI_STATUS_IGNORE), "MPI_Test");
      return done != 0;
    });
  }

  // First member, so that MPI ends after every communicator is freed.
  struct Session {
    Session() {
      // For MPI's own waits while it starts and ends: ranks that outnumber the cores must yield, or
      // each message costs a time slice.
      const char* local = std::getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
      if (local != nullptr && std::atoi(local) > static_cast<int>(std::thread::hardware_concurrency())) {
        setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
        setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
      }
      int provided = 0;
      if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided) != MPI_SUCCESS)
        throw_failure("MPI_Init_thread failed");
      if (provided < MPI_THREAD_MULTIPLE)
        throw_failure("this MPI library offers thread level {}, MPI_THREAD_MULTIPLE is needed", provided);
    }
    ~Session() {
      if (std::uncaught_exceptions() == 0) MPI_Finalize();
    }
  } session_;
  Communicator job_, mail_;
  std::optional<Communicator> host_;  // the ranks on this host
  std::list<Sending> outbox_;
};

}  // namespace

std::unique_ptr<JobComm> make_mpi_job_comm() {
  return std::make_unique<MpiJobComm>();
}

void end_job_now(int exit_code) {
  int started = 0, ended = 0;
  MPI_Initialized(&started);
  MPI_Finalized(&ended);
  if (started && !ended) {
    // MPI_Abort waits for a launcher, which may be out of reach.
    std::thread([exit_code] { MPI_Abort(MPI_COMM_WORLD, exit_code); }).detach();
    std::this_thread::sleep_for(kAbortLimit);
  } else {
    std::this_thread::sleep_for(std::chrono::duration<double>(kAllHaveAsked));
  }
  std::_Exit(exit_code);
}

std::string mpi_library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  MPI_Get_library_version(text, &length);
  return {text, static_cast<std::size_t>(length)};
}

std::string mpi_thread_level() {
  int started = 0, level = 0;
  MPI_Initialized(&started);
  if (!started) return "";
  MPI_Query_thread(&level);
  switch (level) {
    case MPI_THREAD_MULTIPLE:
      return "MPI_THREAD_MULTIPLE";
    case MPI_THREAD_SERIALIZED:
      return "MPI_THREAD_SERIALIZED";
    case MPI_THREAD_FUNNELED:
      return "MPI_THREAD_FUNNELED";
    default:
      return "MPI_THREAD_SINGLE";
  }
}

}  // namespace ptrt
