#include "runtime/mpi_comm.h"

#include <fmt/ranges.h>
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "kernels/error.h"

namespace ptrt {
namespace {

using Clock = std::chrono::steady_clock;

// A rank with a core of its own polls this long before it gives way: far longer than a message takes, far
// shorter than a scheduler's time slice.
constexpr Clock::duration kSpin = std::chrono::microseconds(100);
constexpr Clock::duration kBrief = std::chrono::milliseconds(1);  // waits that are not worth a sleep
constexpr Clock::duration kNap = std::chrono::microseconds(200);
constexpr Clock::duration kLate = std::chrono::milliseconds(200);  // a rank that is not slow, but missed

// Less than libraries send to other hosts without asking first (Open MPI over TCP: 64 KiB).
constexpr std::size_t kEagerBytes = 60 * 1024;

void check(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw_failure("{} failed: {}", call, std::string(text, static_cast<std::size_t>(length)));
}

int to_count(std::size_t bytes) {
  if (bytes > INT_MAX) throw_failure("a message of {} bytes is larger than MPI's counts allow", bytes);
  return static_cast<int>(bytes);
}

// A communicator that throws instead of aborting, freed with the object.
class Communicator {
 public:
  explicit Communicator(MPI_Comm comm) : comm_(comm) {
    check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
  }
  ~Communicator() {
    // Freeing is collective; on the way out of an error the other ranks do not take part.
    if (std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  MPI_Comm get() const { return comm_; }
  int rank() const { return rank_; }
  int size() const { return size_; }

 private:
  MPI_Comm comm_;
  int rank_ = 0, size_ = 1;
};

// Waits for a call outside the decode loop at little cost to whoever else runs on this core: gives way at
// first, then sleeps between looks. False when it took longer than `seconds`.
bool wait_politely(MPI_Request request, double seconds = std::numeric_limits<double>::infinity()) {
  const auto start = Clock::now();
  for (int done = 0;;) {
    check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (done) return true;
    const auto waited = Clock::now() - start;
    if (std::chrono::duration<double>(waited).count() > seconds) return false;
    if (waited < kBrief)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(kNap);
  }
}

MPI_Comm duplicate(MPI_Comm comm) {
  MPI_Comm copy = MPI_COMM_NULL;
  check(MPI_Comm_dup(comm, &copy), "MPI_Comm_dup");
  return copy;
}

class MpiSharedMemory final : public SharedMemory {
 public:
  // Takes over the window.
  MpiSharedMemory(MPI_Win window, int ranks) : window_(window) {
    for (int r = 0; r < ranks; r++) {
      MPI_Aint size = 0;
      int unit = 0;
      void* base = nullptr;
      check(MPI_Win_shared_query(window_, r, &size, &unit, &base), "MPI_Win_shared_query");
      void* aligned = base;
      std::size_t space = static_cast<std::size_t>(size);
      bases_.push_back(static_cast<std::byte*>(std::align(kCacheLine, 1, aligned, space)));
    }
  }
  ~MpiSharedMemory() override {
    if (std::uncaught_exceptions() == 0) MPI_Win_free(&window_);
  }
  std::byte* of(int rank) override { return bases_[static_cast<std::size_t>(rank)]; }

  static constexpr std::size_t kCacheLine = 64;

 private:
  MPI_Win window_;
  std::vector<std::byte*> bases_;
};

// Every rank sends to others directly. Own requests rather than MPI's collectives, so that how to wait is
// decided here, whatever the MPI library's settings. Messages to other hosts go in pieces that a library
// sends off at once: of larger ones it first sends word, and waits for the answer.
class MpiTrackComm final : public TrackComm {
 public:
  // `job_ranks`: of its ranks, in the job.
  MpiTrackComm(MPI_Comm comm, Waiting waiting, std::vector<int> job_ranks)
      : comm_(comm),
        waiting_(waiting),
        job_ranks_(std::move(job_ranks)),
        on_host_(on_my_host(comm_)),
        all_on_host_(std::ranges::count(on_host_, true) == size()) {
    requests_.reserve(64);
    peers_.reserve(64);
  }
  int size() const override { return comm_.size(); }
  int rank() const override { return comm_.rank(); }
  Waiting waiting() const override { return waiting_; }
  // Any call makes the library look at its events, a lost launcher among them.
  void listen(int from) override {
    int here = 0;
    check(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm_.get(), &here, MPI_STATUS_IGNORE), "MPI_Iprobe");
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
    for (const Incoming& message : receives) receive(message);
    for (const Outgoing& message : sends) this->send(message);
    wait_for_all();
  }

  std::unique_ptr<SharedMemory> share(std::size_t bytes) override {
    if (!all_on_host_) return nullptr;
    std::byte* mine = nullptr;
    MPI_Win window = MPI_WIN_NULL;
    bytes += MpiSharedMemory::kCacheLine;  // for aligning
    int made = MPI_Win_allocate_shared(static_cast<MPI_Aint>(bytes), 1, MPI_INFO_NULL, comm_.get(), &mine,
                                       &window) == MPI_SUCCESS;
    check(MPI_Allreduce(MPI_IN_PLACE, &made, 1, MPI_INT, MPI_MIN, comm_.get()), "MPI_Allreduce");
    if (made == 0) return nullptr;  // a window that some ranks have cannot be freed; it lasts as long as they
    check(MPI_Win_set_errhandler(window, MPI_ERRORS_RETURN), "MPI_Win_set_errhandler");
    std::memset(mine, 0, bytes);
    check(MPI_Barrier(comm_.get()), "MPI_Barrier");
    return std::make_unique<MpiSharedMemory>(window, size());
  }

 private:
  // [rank] whether it runs on this rank's host.
  static std::vector<bool> on_my_host(const Communicator& comm) {
    MPI_Comm found = MPI_COMM_NULL;
    check(MPI_Comm_split_type(comm.get(), MPI_COMM_TYPE_SHARED, comm.rank(), MPI_INFO_NULL, &found),
          "MPI_Comm_split_type");
    const Communicator host(found);
    int name = comm.rank();  // the host's lowest rank names it
    check(MPI_Bcast(&name, 1, MPI_INT, 0, host.get()), "MPI_Bcast");
    std::vector<int> names(static_cast<std::size_t>(comm.size()));
    check(MPI_Allgather(&name, 1, MPI_INT, names.data(), 1, MPI_INT, comm.get()), "MPI_Allgather");
    std::vector<bool> mine;
    for (const int other : names) mine.push_back(other == name);
    return mine;
  }

  // Sends `bytes` from send + r · stride to each rank r. Two calls in a row cannot mix: messages between two
  // ranks keep their order.
  void to_everyone(const void* send, void* recv, std::size_t bytes, std::size_t stride) {
    const int ranks = size();
    const auto* from = static_cast<const std::byte*>(send);
    auto* to = static_cast<std::byte*>(recv);
    for (int distance = 1; distance < ranks; distance++) {
      const int source = (rank() + ranks - distance) % ranks;
      receive({source, to + static_cast<std::size_t>(source) * bytes, bytes});
    }
    for (int distance = 1; distance < ranks; distance++) {
      const int target = (rank() + distance) % ranks;
      this->send({target, from + static_cast<std::size_t>(target) * stride, bytes});
    }
    std::memcpy(to + static_cast<std::size_t>(rank()) * bytes,
                from + static_cast<std::size_t>(rank()) * stride, bytes);
    wait_for_all();
  }

  std::size_t piece_bytes(int rank) const {
    return on_host_[static_cast<std::size_t>(rank)] ? std::size_t{INT_MAX} : kEagerBytes;
  }

  void receive(const Incoming& message) {
    auto* to = static_cast<std::byte*>(message.data);
    const std::size_t piece = piece_bytes(message.from);
    for (std::size_t at = 0; at < message.bytes; at += piece) {
      peers_.push_back(message.from);
      check(MPI_Irecv(to + at, to_count(std::min(piece, message.bytes - at)), MPI_BYTE, message.from, 0,
                      comm_.get(), &requests_.emplace_back()),
            "MPI_Irecv");
    }
  }

  void send(const Outgoing& message) {
    const auto* from = static_cast<const std::byte*>(message.data);
    const std::size_t piece = piece_bytes(message.to);
    for (std::size_t at = 0; at < message.bytes; at += piece) {
      peers_.push_back(message.to);
      check(MPI_Isend(from + at, to_count(std::min(piece, message.bytes - at)), MPI_BYTE, message.to, 0,
                      comm_.get(), &requests_.emplace_back()),
            "MPI_Isend");
    }
  }

  void wait_for_all() {
    const bool spins = waiting_ == Waiting::spinning && all_on_host_;
    const auto start = Clock::now();
    const auto give_way = start + (spins ? kSpin : Clock::duration::zero());
    for (int done = 0;;) {
      check(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE),
            "MPI_Testall");
      if (done) break;
      const auto now = Clock::now();
      if (now >= start + kLate) {
        wait_and_note_the_late();
        break;
      }
      if (now >= give_way) std::this_thread::yield();
    }
    requests_.clear();
    peers_.clear();
  }

  // Takes messages as they come, so that late_ranks() knows whose are missing: a rank that stands still also
  // takes none.
  void wait_and_note_the_late() {
    std::vector<int> done(requests_.size());
    for (int count = 0; count != MPI_UNDEFINED; std::this_thread::yield()) {
      note_the_late();
      check(MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &count, done.data(),
                         MPI_STATUSES_IGNORE),
            "MPI_Testsome");
    }
  }

  void note_the_late() {
    const std::lock_guard lock(mutex_);
    late_.clear();
    for (std::size_t i = 0; i < requests_.size(); i++)
      if (requests_[i] != MPI_REQUEST_NULL) late_.insert(peers_[i]);
  }

  Communicator comm_;
  Waiting waiting_;
  std::vector<int> job_ranks_;
  std::vector<bool> on_host_;  // [rank]
  // Else a message takes so much longer than giving way that polling without a pause gains nothing.
  bool all_on_host_;
  std::vector<MPI_Request> requests_;  // of one exchange: receives, then sends
  std::vector<int> peers_;             // whose each is
  std::mutex mutex_;                   // of late_: a thread that watches asks for it
  std::set<int> late_;
};

std::vector<std::string> gather_texts(const Communicator& comm, const std::string& mine) {
  const auto ranks = static_cast<std::size_t>(comm.size());
  std::vector<int> counts(ranks), offsets(ranks);
  const int count = to_count(mine.size());
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Iallgather(&count, 1, MPI_INT, counts.data(), 1, MPI_INT, comm.get(), &request),
        "MPI_Iallgather");
  wait_politely(request);
  std::size_t total = 0;
  for (std::size_t r = 0; r < ranks; r++) {
    offsets[r] = to_count(total);
    total += static_cast<std::size_t>(counts[r]);
  }
  to_count(total);
  std::string joined(total, '\0');
  check(MPI_Iallgatherv(mine.data(), count, MPI_BYTE, joined.data(), counts.data(), offsets.data(), MPI_BYTE,
                        comm.get(), &request),
        "MPI_Iallgatherv");
  wait_politely(request);
  std::vector<std::string> texts;
  for (std::size_t r = 0; r < ranks; r++)
    texts.push_back(joined.substr(static_cast<std::size_t>(offsets[r]), static_cast<std::size_t>(counts[r])));
  return texts;
}

class MpiJobComm final : public JobComm {
 public:
  MpiJobComm() : job_(duplicate(MPI_COMM_WORLD)), mail_(duplicate(MPI_COMM_WORLD)) {
    MPI_Comm on_host = MPI_COMM_NULL;
    check(MPI_Comm_split_type(job_.get(), MPI_COMM_TYPE_SHARED, job_.rank(), MPI_INFO_NULL, &on_host),
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
    check(MPI_Ibarrier(job_.get(), &request), "MPI_Ibarrier");
    return wait_politely(request, seconds);
  }

  std::string broadcast(const std::string& from_rank_0) override {
    std::string text = rank() == 0 ? from_rank_0 : std::string();
    unsigned long long length = text.size();
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Ibcast(&length, 1, MPI_UNSIGNED_LONG_LONG, 0, job_.get(), &request), "MPI_Ibcast");
    wait_politely(request);
    text.resize(length);
    constexpr std::size_t kPiece = std::size_t{1} << 30;  // MPI counts are ints
    for (std::size_t at = 0; at < text.size(); at += kPiece) {
      const auto count = static_cast<int>(std::min(kPiece, text.size() - at));
      check(MPI_Ibcast(text.data() + at, count, MPI_BYTE, 0, job_.get(), &request), "MPI_Ibcast");
      wait_politely(request);
    }
    return text;
  }

  std::vector<std::string> gather(const std::string& mine) override {
    auto all = all_gather(mine);
    if (rank() != 0) all.clear();
    return all;
  }

  std::vector<std::string> all_gather(const std::string& mine) override { return gather_texts(job_, mine); }
  std::vector<std::string> all_gather_on_host(const std::string& mine) override {
    return gather_texts(*host_, mine);
  }

  std::unique_ptr<TrackComm> split(int colour, Waiting waiting) override {
    MPI_Comm part = MPI_COMM_NULL;
    check(MPI_Comm_split(job_.get(), colour, rank(), &part), "MPI_Comm_split");
    int ranks = 0;
    check(MPI_Comm_size(part, &ranks), "MPI_Comm_size");
    std::vector<int> job_ranks(static_cast<std::size_t>(ranks));
    const int mine = rank();
    check(MPI_Allgather(&mine, 1, MPI_INT, job_ranks.data(), 1, MPI_INT, part), "MPI_Allgather");
    return std::make_unique<MpiTrackComm>(part, waiting, std::move(job_ranks));
  }

  void post(const std::string& message) override {
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Isend(message.data(), to_count(message.size()), MPI_BYTE, 0, 0, mail_.get(), &request),
          "MPI_Isend");
    wait_politely(request);
  }

  std::optional<std::string> poll_post() override {
    int here = 0;
    MPI_Status status;
    check(MPI_Iprobe(MPI_ANY_SOURCE, 0, mail_.get(), &here, &status), "MPI_Iprobe");
    if (!here) return std::nullopt;
    int count = 0;
    check(MPI_Get_count(&status, MPI_BYTE, &count), "MPI_Get_count");
    std::string message(static_cast<std::size_t>(count), '\0');
    check(MPI_Recv(message.data(), count, MPI_BYTE, status.MPI_SOURCE, 0, mail_.get(), MPI_STATUS_IGNORE),
          "MPI_Recv");
    return message;
  }

  [[noreturn]] void abort(int exit_code) override {
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    std::_Exit(exit_code);
  }

 private:
  // First member, so that MPI ends after every communicator is freed.
  struct Session {
    Session() {
      // In MPI's own waits, of its start and end: ranks that outnumber the cores must give way, or each
      // message costs a time slice.
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
};

}  // namespace

bool started_by_mpi_launcher() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"})
    if (std::getenv(name) != nullptr) return true;
  return false;
}

std::unique_ptr<JobComm> make_mpi_job_comm() {
  return std::make_unique<MpiJobComm>();
}

std::string mpi_library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  MPI_Get_library_version(text, &length);
  return {text, static_cast<std::size_t>(length)};
}

}  // namespace ptrt
