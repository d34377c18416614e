#include "kernels/base/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

namespace fs = std::filesystem;

constexpr int kAttempts = 100;
constexpr mode_t kMode = 0666;  // less the umask

// Temporary files of this process, for a signal handler: it may read atomics and call unlink(). Slots are
// few; what does not find one is not removed by a signal.
constexpr std::array kEndingSignals{SIGINT, SIGTERM, SIGHUP};
constexpr std::size_t kSlots = 256;
std::array<std::atomic<char*>, kSlots> g_temporaries{};
static_assert(std::atomic<char*>::is_always_lock_free, "read in a signal handler");

void note_temporary(const std::string& name) {
  char* const copy = strdup(name.c_str());
  for (std::atomic<char*>& slot : g_temporaries)
    if (char* free_slot = nullptr; slot.compare_exchange_strong(free_slot, copy)) return;
  std::free(copy);
}

// The text is kept: a handler on another thread may be reading it.
void forget_temporary(const std::string& name) {
  static std::mutex mutex;
  static auto* const kept = new std::vector<char*>;
  const std::lock_guard lock(mutex);
  for (std::atomic<char*>& slot : g_temporaries)
    if (char* const noted = slot.load(); noted != nullptr && name == noted) {
      slot = nullptr;
      kept->push_back(noted);
    }
}

void remove_temporaries(int signal_number) {
  for (const std::atomic<char*>& slot : g_temporaries)
    if (const char* const name = slot.load(); name != nullptr) unlink(name);
  std::signal(signal_number, SIG_DFL);
  std::raise(signal_number);
}

// None of the signals is handled between the creation of a file and the note of it.
class SignalsHeld {
 public:
  SignalsHeld() {
    sigset_t held;
    sigemptyset(&held);
    for (const int number : kEndingSignals) sigaddset(&held, number);
    pthread_sigmask(SIG_BLOCK, &held, &before_);
  }
  ~SignalsHeld() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsHeld(const SignalsHeld&) = delete;
  SignalsHeld& operator=(const SignalsHeld&) = delete;

 private:
  sigset_t before_{};
};

// A descriptor of this process by one of its names; -1: the path is none.
int descriptor_of(const std::string& path) {
  if (path == "/dev/stdout") return STDOUT_FILENO;
  if (path == "/dev/stderr") return STDERR_FILENO;
  for (const std::string_view folder : {"/dev/fd/", "/proc/self/fd/"}) {
    if (!path.starts_with(folder)) continue;
    int number = -1;
    const char* const end = path.data() + path.size();
    const auto [stop, error] = std::from_chars(path.data() + folder.size(), end, number);
    if (error == std::errc() && stop == end) return number;
  }
  return -1;
}

// Devices and pipes have no content to keep: they are written as they are.
bool is_special(const std::string& path) {
  struct stat status;
  if (descriptor_of(path) >= 0) return true;
  return stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode);
}

void refuse_directory(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode))
    throw_bad_input("cannot write {}: {}", path, std::strerror(EISDIR));
}

// Room in a name for what is added to it.
std::string cut_name(const std::string& path) {
  constexpr std::size_t kLongest = 255 - std::string_view(".12345678.tmp").size();
  const std::size_t slash = path.rfind('/'), name = slash == std::string::npos ? 0 : slash + 1;
  return path.substr(0, name + kLongest);
}

// A rename is on disk when its directory is. Some file systems cannot sync one.
void sync_directory_of(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  const int directory = open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return;
  fsync(directory);
  close(directory);
}

// Pipes and some file systems do not support fsync (EINVAL).
bool sync_file(int descriptor) {
  return fsync(descriptor) == 0 || errno == EINVAL;
}

}  // namespace

std::string behind_links(const std::string& path) {
  constexpr int kMostLinks = 40;  // as the kernel follows
  std::error_code ignored;
  fs::path place = path;
  for (int i = 0; i < kMostLinks; i++) {
    const fs::path target = fs::read_symlink(place, ignored);
    if (target.empty()) break;
    place = place.parent_path() / target;
  }
  return place.string();
}

std::string create_temporary_beside(const std::string& path) {
  if (path.empty()) throw_bad_input("cannot write a file without a name");
  std::random_device random;
  const SignalsHeld held;
  for (int i = 0; i < kAttempts; i++) {
    std::string name = fmt::format("{}.{:08x}.tmp", cut_name(path), random());
    const int descriptor = open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, kMode);
    if (descriptor >= 0) {
      close(descriptor);
      note_temporary(name);
      return name;
    }
    if (errno != EEXIST) break;
  }
  throw_bad_input("cannot write {}: {}", path, std::strerror(errno));
}

void publish_temporary(const std::string& temporary, const std::string& path) {
  const int descriptor = open(temporary.c_str(), O_RDONLY | O_CLOEXEC);
  const bool synced = descriptor >= 0 && sync_file(descriptor);
  const int error = errno;
  if (descriptor >= 0) close(descriptor);
  if (!synced) throw_failure("cannot write {}: {}", temporary, std::strerror(error));
  if (std::rename(temporary.c_str(), path.c_str()) != 0)
    throw_failure("cannot rename {} to {}: {}", temporary, path, std::strerror(errno));
  forget_temporary(temporary);
  sync_directory_of(path);
}

void remove_temporary(const std::string& temporary) {
  unlink(temporary.c_str());
  forget_temporary(temporary);
}

void remove_temporaries_on_signals() {
  struct sigaction action = {}, before = {};
  action.sa_handler = remove_temporaries;
  for (const int number : kEndingSignals) {
    const bool ignored = sigaction(number, nullptr, &before) == 0 && before.sa_handler == SIG_IGN;  // nohup
    if (!ignored) sigaction(number, &action, nullptr);
  }
}

void check_writable(const std::string& path) {
  refuse_directory(path);
  if (!is_special(path)) {
    remove_temporary(create_temporary_beside(behind_links(path)));
  } else if (const int number = descriptor_of(path); number >= 0) {
    const int flags = fcntl(number, F_GETFL);
    if (flags >= 0 && (flags & O_ACCMODE) == O_RDONLY) errno = EBADF;
    if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY)
      throw_bad_input("cannot write {}: {}", path, std::strerror(errno));
  } else if (access(path.c_str(), W_OK) != 0) {
    throw_bad_input("cannot write {}: {}", path, std::strerror(errno));
  }
}

OutputFile::OutputFile(const std::string& path) : path_(behind_links(path)) {
  refuse_directory(path);
  if (const int number = descriptor_of(path); number >= 0) {
    std::fflush(nullptr);  // what was printed stands before
    descriptor_ = fcntl(number, F_DUPFD_CLOEXEC, 0);
  } else {
    if (!is_special(path)) temporary_ = create_temporary_beside(path_);
    descriptor_ = open(temporary_.empty() ? path.c_str() : temporary_.c_str(), O_WRONLY | O_CLOEXEC);
  }
  if (descriptor_ < 0) throw_bad_input("cannot write {}: {}", path, std::strerror(errno));
}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) close(descriptor_);
  if (!temporary_.empty()) remove_temporary(temporary_);
}

void OutputFile::write(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(descriptor_, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) throw_failure("cannot write {}: {}", path_, std::strerror(errno));
    text.remove_prefix(static_cast<std::size_t>(written));
  }
}

void OutputFile::publish() {
  if (close(std::exchange(descriptor_, -1)) != 0)
    throw_failure("cannot write {}: {}", path_, std::strerror(errno));
  if (temporary_.empty()) return;
  publish_temporary(temporary_, path_);
  temporary_.clear();
}

std::string OutputFile::keep() {
  if (close(std::exchange(descriptor_, -1)) != 0)
    throw_failure("cannot write {}: {}", temporary_, std::strerror(errno));
  if (!temporary_.empty()) forget_temporary(temporary_);
  return std::exchange(temporary_, {});
}

bool is_same_file(const std::string& a, const std::string& b) {
  if (a.empty() || b.empty()) return false;
  struct stat of_a, of_b;
  const bool a_exists = stat(a.c_str(), &of_a) == 0, b_exists = stat(b.c_str(), &of_b) == 0;
  if (a_exists != b_exists) return false;
  if (a_exists)
    return (S_ISREG(of_a.st_mode) || S_ISDIR(of_a.st_mode)) && of_a.st_dev == of_b.st_dev &&
           of_a.st_ino == of_b.st_ino;
  std::error_code ignored;
  // Of a relative path of which nothing exists, weakly_canonical() makes no absolute one.
  const fs::path place_a = fs::weakly_canonical(fs::absolute(behind_links(a), ignored), ignored);
  const fs::path place_b = fs::weakly_canonical(fs::absolute(behind_links(b), ignored), ignored);
  return place_a == place_b && !place_a.empty();
}

void check_outputs(std::span<const NamedFile> outputs, std::span<const NamedFile> inputs) {
  for (std::size_t i = 0; i < outputs.size(); i++) {
    const NamedFile& output = outputs[i];
    for (const NamedFile& input : inputs)
      if (is_same_file(output.path, input.path))
        throw_bad_input("{} {} would overwrite {} {}", output.label, output.path, input.label, input.path);
    for (const NamedFile& other : outputs.first(i))
      if (is_same_file(output.path, other.path))
        throw_bad_input("{} {} and {} {} are one file", other.label, other.path, output.label, output.path);
  }
}

}  // namespace ptrt
