#include "launch/python/python_helper.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/progress.h"
#include "launch/python/helper_script.h"

extern char** environ;

namespace ptrt {
namespace {

using Clock = std::chrono::steady_clock;

Clock::time_point after(double seconds) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// Waits until the socket can be read or written; false after `deadline`. Waiting is bounded, so it is progress.
bool wait_for(int socket, short events, Clock::time_point deadline,
              const std::function<bool()>& stop_requested) {
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left < 0) return false;
    pollfd ready{socket, events, 0};
    note_progress();
    if (poll(&ready, 1, static_cast<int>(std::min<std::int64_t>(left + 1, 200))) > 0) return true;
    if (stop_requested && stop_requested()) throw HelperStopped();
  }
}

constexpr const char* kReady = R"({"ready": true})";

// That of the program without what changes the interpreter. Sets have the same order in every run.
std::vector<std::string> environment() {
  std::vector<std::string> kept = {"PYTHONHASHSEED=0"};
  for (char** entry = environ; *entry != nullptr; entry++)
    if (!std::string_view(*entry).starts_with("PYTHON")) kept.emplace_back(*entry);
  return kept;
}

std::string interpreter() {
  const char* set = std::getenv("PTRT_PYTHON");
  return set != nullptr && *set != '\0' ? set : "python3";
}

// Of posix_spawn: the child's standard input is the socket, on which it answers too: what else is printed in it gets
// nowhere. It does not take the signals that are for the job, nor
// those that this thread blocks for itself.
class SpawnSettings {
 public:
  explicit SpawnSettings(int socket) {
    posix_spawn_file_actions_init(&files_);
    posix_spawn_file_actions_adddup2(&files_, socket, STDIN_FILENO);
    for (const int number : {STDOUT_FILENO, STDERR_FILENO})
      posix_spawn_file_actions_addopen(&files_, number, "/dev/null", O_WRONLY, 0);
    posix_spawnattr_init(&attributes_);
    sigset_t blocked, standard;
    sigemptyset(&blocked);
    for (const int number : {SIGINT, SIGTERM, SIGUSR1, SIGHUP}) sigaddset(&blocked, number);
    sigemptyset(&standard);
    for (const int number : {SIGPIPE, SIGPROF}) sigaddset(&standard, number);
    posix_spawnattr_setsigmask(&attributes_, &blocked);
    posix_spawnattr_setsigdefault(&attributes_, &standard);
    posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  }
  ~SpawnSettings() {
    posix_spawn_file_actions_destroy(&files_);
    posix_spawnattr_destroy(&attributes_);
  }
  SpawnSettings(const SpawnSettings&) = delete;
  SpawnSettings& operator=(const SpawnSettings&) = delete;

  const posix_spawn_file_actions_t* files() const { return &files_; }
  const posix_spawnattr_t* attributes() const { return &attributes_; }

 private:
  posix_spawn_file_actions_t files_;
  posix_spawnattr_t attributes_;
};

std::string explain_end(int status) {
  if (WIFSIGNALED(status)) return fmt::format("ended by signal {}", WTERMSIG(status));
  return fmt::format("ended with status {}", WEXITSTATUS(status));
}

}  // namespace

PythonHelper::PythonHelper(Limits limits, std::function<bool()> stop_requested)
    : limits_(limits), stop_requested_(std::move(stop_requested)) {}

PythonHelper::~PythonHelper() {
  end();
}

void PythonHelper::start(const Purpose& purpose) {
  std::array<int, 2> ends{};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
    throw_failure("cannot make a socket: {}", std::strerror(errno));
  FileDescriptor ours(ends[0]);
  FileDescriptor theirs(ends[1]);
  const SpawnSettings settings(theirs.get());
  std::array<std::string, 5> words = {interpreter(), "-c", kHelperScript,
                                      fmt::format("{}", limits_.processor_s),
                                      fmt::format("{}", limits_.memory_bytes)};
  std::array<char*, 6> argv{};
  std::ranges::transform(words, argv.begin(), [](std::string& word) { return word.data(); });
  std::vector<std::string> variables = environment();
  std::vector<char*> envp;
  for (std::string& variable : variables) envp.push_back(variable.data());
  envp.push_back(nullptr);
  const int error =
      posix_spawnp(&pid_, argv[0], settings.files(), settings.attributes(), argv.data(), envp.data());
  if (error != 0) {
    pid_ = -1;
    throw HelperError{
        purpose.unavailable,
        fmt::format("{} needs Python: cannot start {}: {} (PTRT_PYTHON may name an interpreter)",
                    purpose.what, words[0], std::strerror(error))};
  }
  theirs = FileDescriptor();  // so that its end is the end of what can be read
  socket_ = std::move(ours);
  std::string ready;
  if (Silence silence{}; !receive(ready, limits_.start_s, silence)) {
    const bool late = silence == Silence::late;
    const int status = end(!late);
    throw HelperError{purpose.unavailable,
                      fmt::format("{} needs Python: {} {}", purpose.what, words[0],
                                  late ? fmt::format("does not start within {} s", limits_.start_s)
                                       : fmt::format("{} at its start", explain_end(status)))};
  }
  if (ready != kReady) {
    end();
    throw HelperError{purpose.unavailable, fmt::format("{} needs Python: {} does not say that it is ready",
                                                       purpose.what, words[0])};
  }
}

bool PythonHelper::send(std::string_view text, double seconds, Silence& silence) {
  const auto deadline = after(seconds);
  while (!text.empty()) {
    silence = Silence::late;
    if (!wait_for(socket_.get(), POLLOUT, deadline, stop_requested_)) return false;
    const ssize_t sent = ::send(socket_.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0)
      text.remove_prefix(static_cast<std::size_t>(sent));
    else if (errno != EINTR && errno != EAGAIN) {
      silence = Silence::ended;
      return false;
    }
  }
  return true;
}

// One line, without its line break. False: `silence` says why.
bool PythonHelper::receive(std::string& line, double seconds, Silence& silence) {
  const auto deadline = after(seconds);
  line.clear();
  for (std::array<char, 65536> piece;;) {
    silence = Silence::late;
    if (!wait_for(socket_.get(), POLLIN, deadline, stop_requested_)) return false;
    const ssize_t got = recv(socket_.get(), piece.data(), piece.size(), MSG_DONTWAIT);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    silence = Silence::ended;
    if (got <= 0) return false;
    line.append(piece.data(), static_cast<std::size_t>(got));
    if (line.back() == '\n') {  // it writes nothing that was not asked for
      line.pop_back();
      return true;
    }
    silence = Silence::too_long;
    if (line.size() > limits_.answer_bytes) return false;
  }
}

int PythonHelper::end(bool ended) {
  if (pid_ < 0) return 0;
  int status = 0;
  // One that has ended by itself keeps its own status; its output is closed a little earlier.
  const auto deadline = after(ended ? 1 : 0);
  while (waitpid(pid_, &status, WNOHANG) == 0) {
    if (Clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      continue;
    }
    kill(pid_, SIGKILL);
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    break;
  }
  pid_ = -1;
  socket_ = FileDescriptor();
  return status;
}

bool PythonHelper::exchange(std::string_view question, const Purpose& purpose, std::string& answer,
                            Silence& silence) {
  if (pid_ < 0) start(purpose);
  const std::string number = fmt::format("{} ", ++asked_);
  if (!send(fmt::format("{}{}\n", number, question), limits_.answer_s, silence) ||
      !receive(answer, limits_.answer_s, silence))
    return false;
  silence = Silence::other;
  if (!answer.starts_with(number) || answer.find('\n') != std::string::npos) return false;
  answer.erase(0, number.size());
  return true;
}

std::string PythonHelper::ask(std::string_view question, const Purpose& purpose) {
  const auto fail = [&](const std::string& problem) {
    throw HelperError{purpose.failed, fmt::format("{} {}", purpose.what, problem)};
  };
  std::string answer;
  int status = 0;
  for (int attempt = 0; attempt < 2; attempt++) {
    Silence silence{};
    try {
      if (exchange(question, purpose, answer, silence)) return answer;
    } catch (const HelperStopped&) {
      end();  // its answer would be taken for that of another question
      throw;
    }
    status = end(silence == Silence::ended);
    if (silence == Silence::other) fail("has no answer: the Python process answers what was not asked");
    if (silence == Silence::too_long) fail(fmt::format("gives more than {} bytes", limits_.answer_bytes));
    if (silence == Silence::late)
      throw HelperError{purpose.unavailable, fmt::format("{} takes longer than {} s: the host is too busy",
                                                         purpose.what, limits_.answer_s)};
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGPROF)
      fail(fmt::format("takes more than {} s of processor time", limits_.processor_s));
    // Ended by something else, which need not be the question's fault: it is asked once more.
  }
  fail(fmt::format("ends the Python process, which {}", explain_end(status)));
  return {};
}

}  // namespace ptrt
