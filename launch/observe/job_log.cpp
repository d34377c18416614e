#include "launch/observe/job_log.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "kernels/base/error.h"
#include "kernels/base/file_descriptor.h"
#include "launch/job/crash_report.h"
#include "launch/job/process.h"
#include "launch/job/standard_streams.h"

namespace ptrt {
namespace {

constexpr std::string_view kFirstLine = "# ptrt log 1\n";
constexpr std::string_view kRedraw = "\r\033[K";  // begins a bar that replaces the one before

// "2026-11-30T18:45:34.123Z rank 1 of 2 (host): text", a line at a time. Failures are ignored as on standard error.
void write_lines(int file, const std::string& who, std::string_view text) {
  if (text.starts_with(kRedraw)) {
    if (!text.ends_with('\n')) return;  // the last bar alone is a line
    text.remove_prefix(kRedraw.size());
  }
  const auto now = std::chrono::system_clock::now();
  const auto ms =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  const std::string start =
      fmt::format("{:%FT%T}.{:03}Z {}{}", fmt::gmtime(std::chrono::system_clock::to_time_t(now)), ms, who,
                  who.empty() ? "" : ": ");
  std::string lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    lines += fmt::format("{}{}\n", start, text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  [[maybe_unused]] const ssize_t written = ::write(file, lines.data(), lines.size());
}

// An empty file gets the first line. Throws bad_input.
FileDescriptor open_log(const std::string& path) {
  FileDescriptor file(::open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_NONBLOCK | O_CLOEXEC, 0666));
  struct stat status {};
  if (!file || ::fstat(file.get(), &status) != 0)
    throw_bad_input("--log-file: cannot open {}: {}", path, std::strerror(errno));
  std::array<char, kFirstLine.size()> begin{};
  const bool regular = S_ISREG(status.st_mode);
  if (regular && status.st_size == 0 && ::write(file.get(), kFirstLine.data(), kFirstLine.size()) > 0)
    return file;
  if (!regular || ::pread(file.get(), begin.data(), begin.size(), 0) != std::ssize(begin) ||
      std::string_view(begin.data(), begin.size()) != kFirstLine)
    throw_bad_input("--log-file: {} is there and is no log of this program: choose another name", path);
  return file;
}

}  // namespace

std::string name_for_rank(const std::string& pattern, int rank, const std::string& host) {
  const char* slurm = std::getenv("SLURM_JOB_ID");
  std::string name;
  for (std::size_t at = 0; at < pattern.size(); at++) {
    if (pattern[at] != '%') {
      name += pattern[at];
      continue;
    }
    const char letter = ++at < pattern.size() ? pattern[at] : '\0';
    if (letter == 'r')
      name += std::to_string(rank);
    else if (letter == 'h')
      name += host;
    else if (letter == 'j')
      name += slurm == nullptr ? "0" : slurm;
    else if (letter == '%')
      name += '%';
    else
      throw_bad_input("--log-file {}: after a percent sign comes r, h, j or %", pattern);
  }
  return name;
}

void open_job_log(const std::string& pattern, const JobComm& job, std::span<const NamedFile> inputs) {
  const std::string path = name_for_rank(pattern, job.rank(), job.host());
  const bool names_rank = name_for_rank(pattern, job.rank() + 1, job.host()) != path;
  const bool names_host = name_for_rank(pattern, job.rank(), job.host() + "x") != path;
  if (!names_rank && (job.host_ranks() > 1 || (job.size() > 1 && !names_host)))
    throw_bad_input("--log-file {}: {} ranks would write one file; put %r, their number, into its name",
                    pattern, job.size());
  check_outputs(std::vector<NamedFile>{{"--log-file", path}}, inputs);
  static FileDescriptor file;  // until the process ends
  file = open_log(path);
  const std::string who = name_in_job(job);
  set_log([who](std::string_view text) { write_lines(file.get(), who, text); });
  also_report_crashes_to(file.get());
}

}  // namespace ptrt
