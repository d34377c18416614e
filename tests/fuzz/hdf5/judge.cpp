#include "judge.h"

#include <fcntl.h>
#include <hdf5.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>

#include "kernels/base/error.h"
#include "model_io/file/model_probe.h"

namespace ptrt {
namespace {

constexpr rlim_t kLoadSeconds = 4;

// A dataset as the library alone reads it, in this machine's byte order.
std::vector<std::byte> read_by_library(hid_t file, const std::string& path) {
  const hid_t dataset = H5Dopen2(file, path.c_str(), H5P_DEFAULT);
  const hid_t type = H5Dget_type(dataset), space = H5Dget_space(dataset);
  const std::size_t element = H5Tget_size(type);
  std::vector<std::byte> bytes(static_cast<std::size_t>(H5Sget_simple_extent_npoints(space)) * element);
  if (H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()) < 0) bytes.clear();
  if (H5Tget_order(type) == H5T_ORDER_BE)
    for (std::size_t at = 0; at < bytes.size(); at += element) std::reverse(&bytes[at], &bytes[at] + element);
  H5Sclose(space), H5Tclose(type), H5Dclose(dataset);
  return bytes;
}

// "" where both agree.
std::string difference_from_library(const std::string& path, const Content& content) {
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  std::string what;
  for (const auto& [name, tensor] : content.tensors) {
    if (tensor.bytes != read_by_library(file, name)) what = name;
    if (!tensor.scales.empty() && tensor.scales != read_by_library(file, name + ".scale")) what = name;
  }
  H5Fclose(file);
  return what;
}

bool same_tensor(const Content::Tensor& a, const Content::Tensor& b) {
  return a.dtype == b.dtype && a.layout == b.layout && a.bytes == b.bytes && a.scales == b.scales;
}

Judgement load(const std::string& path, const Content& seed) {
  Content found;
  try {
    found = read_content(ModelFile(path));
  } catch (...) {
    return {Outcome::refused, current_error().what()};
  }
  if (const std::string what = difference_from_library(path, found); !what.empty())
    return {Outcome::differs, what};
  for (const auto& [name, tensor] : found.tensors) {
    const auto original = seed.tensors.find(name);
    if (original == seed.tensors.end() || !same_tensor(original->second, tensor))
      return {tensor.checked ? Outcome::other_content : Outcome::unchecked, name};
  }
  const bool same = found.config == seed.config && found.tokenizer == seed.tokenizer;
  return {same ? Outcome::same : Outcome::other_config, ""};
}

Judgement load_apart(const std::string& path, const Content& seed) {
  int ends[2];
  if (::pipe(ends) != 0) throw_failure("no pipe");
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit time{kLoadSeconds, kLoadSeconds}, none{0, 0};
    ::setrlimit(RLIMIT_CPU, &time), ::setrlimit(RLIMIT_CORE, &none);
    for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGABRT}) std::signal(signal, SIG_DFL);
    ::dup2(::open("/dev/null", O_WRONLY), 2);
    const Judgement found = load(path, seed);
    const std::string text = static_cast<char>(found.outcome) + found.message.substr(0, 1000);
    [[maybe_unused]] const ssize_t put = ::write(ends[1], text.data(), text.size());
    ::_exit(0);
  }
  ::close(ends[1]);
  char text[1100];
  ssize_t got = 0;
  while ((got = ::read(ends[0], text, sizeof text)) < 0 && errno == EINTR) {
  }
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  if (got > 0)
    return {static_cast<Outcome>(text[0]), std::string(text + 1, static_cast<std::size_t>(got - 1))};
  const bool slow = WIFSIGNALED(status) && (WTERMSIG(status) == SIGXCPU || WTERMSIG(status) == SIGKILL);
  return {slow ? Outcome::load_hung : Outcome::load_crashed, fmt::format("wait status {}", status)};
}

}  // namespace

const char* to_string(Outcome outcome) {
  constexpr const char* kNames[kOutcomes] = {"refused",      "crash_refused", "hang_refused", "same",
                                             "other_config", "other_content", "unchecked",    "load_crashed",
                                             "load_hung",    "differs"};
  return kNames[static_cast<int>(outcome)];
}

Judgement judge(const std::string& file, const Content& seed) {
  try {
    ModelProbe(file, false, {.cpu_seconds = 0.4}).finish();
  } catch (const Error& error) {
    const std::string message = error.what();
    if (message.find("crashed") != std::string::npos) return {Outcome::crash_refused, message};
    if (message.find("did not come to an end") != std::string::npos) return {Outcome::hang_refused, message};
    return {Outcome::refused, message};
  }
  return load_apart(file, seed);
}

}  // namespace ptrt
