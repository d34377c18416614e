#include "model_io/file/model_probe.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstring>
#include <fstream>
#include <new>
#include <string_view>
#include <utility>

#include "kernels/base/error.h"
#include "model_io/config/tensor_names.h"
#include "model_io/file/model_file.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define PTRT_LARGE_ADDRESS_SPACE
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PTRT_LARGE_ADDRESS_SPACE
#endif

namespace ptrt {
namespace {

constexpr double kCpuSecondsPerTensor = 0.005;
constexpr double kCpuSecondsPerByte = 1.0 / (8 << 20);  // of chunks that are decompressed

// SIGPROF ends the process after so much more processor time.
void limit_cpu(double seconds) {
  itimerval limit{};
  limit.it_value.tv_sec = static_cast<time_t>(seconds);
  limit.it_value.tv_usec = static_cast<suseconds_t>((seconds - std::floor(seconds)) * 1e6);
  ::setitimer(ITIMER_PROF, &limit, nullptr);
}

[[maybe_unused]] std::size_t address_space() {
  std::size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

// A sanitizer's shadow memory takes terabytes of addresses.
void limit_memory([[maybe_unused]] std::size_t bytes) {
#if !defined(PTRT_LARGE_ADDRESS_SPACE)
  rlimit limit{};
  ::getrlimit(RLIMIT_AS, &limit);
  static const rlim_t own = limit.rlim_cur;  // that this process was started with
  limit.rlim_cur = std::min<rlim_t>(own, address_space() + bytes);
  ::setrlimit(RLIMIT_AS, &limit);
#endif
}

// A crash ends this process alone, in silence, and leaves no core file; a signal to the whole job is the
// parent's to handle, which this process does not outlive.
void become_expendable() {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGPROF}) std::signal(signal, SIG_DFL);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1, SIGHUP, SIGPIPE}) std::signal(signal, SIG_IGN);
  const rlimit none{0, 0};
  ::setrlimit(RLIMIT_CORE, &none);
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  for (const int descriptor : {0, 1, 2}) ::dup2(null, descriptor);
}

double tensors_of(const ModelConfig& config) {
  return static_cast<double>(config.tracks) * static_cast<double>(track_tensors(config, 0).size());
}

// The content too where the library reads it: chunks may crash it as metadata may.
bool is_read_by_library(const StoredTensor& stored) {
  return !stored.offset || (stored.scales && !stored.scales->offset);
}

// A verdict: an exit code in a byte, then a message, or the metadata.
std::string probe(const std::string& path, bool trust_links, const ProbeLimits& limits) {
  try {
    limit_memory(limits.memory_bytes);
    limit_cpu(limits.cpu_seconds);
    const ModelFile& file = *new ModelFile(path, trust_links);  // closed by the end of this process
    double seconds = limits.cpu_seconds + kCpuSecondsPerTensor * tensors_of(file.config());
    limit_cpu(seconds);
    const ModelMetadata metadata = file.metadata([&](const StoredTensor& stored) {
      if (!is_read_by_library(stored)) return;
      seconds += static_cast<double>(stored.bytes) * kCpuSecondsPerByte;
      limit_cpu(seconds);
      limit_memory(limits.memory_bytes + 2 * stored.bytes);
      file.open(stored);
    });
    return static_cast<char>(ExitCode::ok) + to_bytes(metadata);
  } catch (const std::bad_alloc&) {
    return static_cast<char>(ExitCode::bad_input) +
           fmt::format("{}: damaged HDF5 file: its metadata take more than {} MiB of memory", path,
                       limits.memory_bytes >> 20);
  } catch (...) {
    const Error error = current_error();
    return static_cast<char>(error.code()) + std::string(error.what());
  }
}

// After its length, by which the reader knows that all of it came.
std::string framed(const std::string& verdict) {
  const std::uint64_t size = verdict.size();
  return std::string(reinterpret_cast<const char*>(&size), sizeof size) + verdict;
}

// Empty where the writer ended before it was done.
std::string_view unframed(std::string_view bytes) {
  std::uint64_t size = 0;
  if (bytes.size() <= sizeof size) return {};
  std::memcpy(&size, bytes.data(), sizeof size);
  bytes.remove_prefix(sizeof size);
  return bytes.size() == size ? bytes : std::string_view();
}

void write_all(int descriptor, const std::string& text) {
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t put = ::write(descriptor, text.data() + done, text.size() - done);
    if (put <= 0) return;
    done += static_cast<std::size_t>(put);
  }
}

std::string read_all(int descriptor) {
  std::string text(4096, '\0');
  std::size_t size = 0;
  for (;;) {
    const ssize_t got = ::read(descriptor, text.data() + size, text.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    size += static_cast<std::size_t>(got);
    if (size == text.size()) text.resize(2 * size);
  }
  text.resize(size);
  return text;
}

}  // namespace

ModelProbe::ModelProbe(std::string path, bool trust_links, ProbeLimits limits)
    : path_(std::move(path)), limits_(limits) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw_failure("cannot make a pipe: {}", std::strerror(errno));
  process_ = ::fork();
  const int error = errno;
  if (process_ == 0) {
    become_expendable();
    write_all(ends[1], framed(probe(path_, trust_links, limits_)));
    ::close(ends[1]);  // the owner need not wait for the end of the process
    ::_exit(0);
  }
  ::close(ends[1]);
  verdict_ = ends[0];
  if (process_ > 0) return;
  ::close(verdict_);
  throw_failure("{}: cannot start a process that probes it: {}", path_, std::strerror(error));
}

ModelProbe::~ModelProbe() {
  if (verdict_ >= 0) ::close(verdict_);
  if (process_ <= 0) return;
  ::kill(process_, SIGKILL);
  ::waitpid(process_, nullptr, 0);
}

ModelMetadata ModelProbe::finish() {
  const std::string bytes = read_all(verdict_);
  if (const std::string_view verdict = unframed(bytes); !verdict.empty()) {
    const auto code = static_cast<ExitCode>(verdict.front());
    if (code != ExitCode::ok) throw Error(code, std::string(verdict.substr(1)));
    return metadata_from_bytes(verdict.substr(1), path_);
  }
  int status = 0;
  while (::waitpid(process_, &status, 0) < 0 && errno == EINTR) {
  }
  process_ = -1;
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGPROF)
    throw_bad_input(
        "{}: damaged HDF5 file: the HDF5 library did not come to an end with its metadata in {} s", path_,
        limits_.cpu_seconds);
  throw_bad_input("{}: damaged HDF5 file: reading its metadata crashed the HDF5 library ({})", path_,
                  WIFSIGNALED(status) ? fmt::format("signal {}", WTERMSIG(status))
                                      : fmt::format("exit status {}", WEXITSTATUS(status)));
}

}  // namespace ptrt
