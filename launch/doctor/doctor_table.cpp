#include "launch/doctor/doctor_table.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <set>
#include <utility>

#include "kernels/nccl_version.h"
#include "runtime/serving/memory_plan.h"

namespace ptrt {
namespace {

constexpr int kLabel = 14;  // width of the first column

using HostKey = std::pair<std::string, int>;
using Value = std::function<std::string(const LaunchFacts&)>;

// "0-3,8": numbers in order, runs of them shortened.
std::string ranges_of(const std::set<int>& numbers) {
  const std::vector<int> all(numbers.begin(), numbers.end());
  const std::string text = name_ranks(all);
  return all.empty() ? "none" : text.substr(text.find(' ') + 1);
}

class Table {
 public:
  explicit Table(const Launch& launch) : launch_(launch) {
    for (const LaunchFacts& facts : launch_.ranks) {
      for (const CpuSet& core : facts.allowed_cores)
        units_[facts.host_key()].insert(core.begin(), core.end());
      for (const std::string& uuid : facts.gpus) {
        auto& of_host = gpus_[facts.host_key()];
        if (std::ranges::find(of_host, uuid) == of_host.end()) of_host.push_back(uuid);
      }
    }
  }

  std::string text(const std::string& trial) {
    hosts();
    row("started by", [](const LaunchFacts& f) { return f.launcher; });
    row("program", [](const LaunchFacts& f) { return "ptrt " + f.program; });
    row("MPI", [](const LaunchFacts& f) {
      return fmt::format("{}, {}", f.mpi, f.mpi_level.empty() ? "not started" : f.mpi_level);
    });
    row("HDF5", [](const LaunchFacts& f) { return f.hdf5; });
    row("instructions", [](const LaunchFacts& f) {
      return f.instruction_sets.empty() ? f.instruction_error
                                        : fmt::format("{}", fmt::join(f.instruction_sets, ", "));
    });
    row("cores", [this](const LaunchFacts& f) { return cores(f); });
    row("memory", [](const LaunchFacts& f) {
      return fmt::format("{} a rank ({})", with_byte_unit(f.memory_bytes),
                         f.memory_source.empty() ? "physical memory" : "limit: " + f.memory_source);
    });
    row("/dev/shm", describe_shm);
    row("GPUs", [this](const LaunchFacts& f) { return gpus(f); });
    if (!gpus_.empty())
      row("driver", [](const LaunchFacts& f) {
        if (f.gpus.empty()) return std::string("none");
        return fmt::format("{}; NCCL {}, symmetric windows {}", f.driver, nccl_text(f.nccl),
                           f.nccl_windows_off               ? "off"
                           : f.nccl == 0                    ? "none"
                           : nccl_waits_for_kernels(f.nccl) ? "safe"
                                                            : "not used");
      });
    if (std::ranges::any_of(launch_.ranks,
                            [](const auto& f) { return !f.model.empty() || !f.model_error.empty(); }))
      row("model", [](const LaunchFacts& f) { return f.model.empty() ? "cannot be read" : f.model; });
    output();
    exchange();
    if (!trial.empty()) line("a job", trial);
    return std::move(text_);
  }

 private:
  void line(const std::string& label, const std::string& value) {
    text_ += fmt::format("{:<{}} {}\n", label, kLabel, value);
  }

  // Ranks of the same value share a line.
  void row(const char* label, const Value& value) {
    std::vector<std::pair<std::string, std::vector<int>>> groups;
    for (const LaunchFacts& facts : launch_.ranks) {
      const std::string text = value(facts);
      auto group = std::ranges::find(groups, text, [](const auto& g) { return g.first; });
      if (group == groups.end()) group = groups.insert(groups.end(), {text, {}});
      group->second.push_back(facts.rank);
    }
    const bool alike = groups.size() == 1;
    for (std::size_t i = 0; i < groups.size(); i++)
      line(i == 0 ? label : "",
           alike ? groups[i].first : fmt::format("{}: {}", name_ranks(groups[i].second), groups[i].first));
  }

  void hosts() {
    std::vector<std::pair<HostKey, std::vector<int>>> hosts;
    for (const LaunchFacts& facts : launch_.ranks) {
      auto host = std::ranges::find(hosts, facts.host_key(), [](const auto& h) { return h.first; });
      if (host == hosts.end()) host = hosts.insert(hosts.end(), {facts.host_key(), {}});
      host->second.push_back(facts.rank);
    }
    line("ranks",
         fmt::format("{} on {} host{}", launch_.ranks.size(), hosts.size(), hosts.size() > 1 ? "s" : ""));
    for (const auto& [host, ranks] : hosts)
      line("", fmt::format("{}: {}{}", host.first, name_ranks(ranks),
                           ranks.size() > 1 ? fmt::format(" (local 0-{})", ranks.size() - 1) : ""));
  }

  std::string cores(const LaunchFacts& f) const {
    return fmt::format("{} of {} allowed core{} a rank, {} thread{}{}; units {} of the host", f.cores,
                       f.allowed_cores.size(), f.allowed_cores.size() > 1 ? "s" : "", f.threads,
                       f.threads > 1 ? "s" : "", f.oversubscribed ? " (more than there are units)" : "",
                       ranges_of(units_.at(f.host_key())));
  }

  // The GPUs of a rank's host, and how many of them it sees.
  std::string gpus(const LaunchFacts& f) const {
    if (f.gpus.empty()) return "none: " + (f.why_no_gpu.empty() ? "no CUDA device" : f.why_no_gpu);
    const std::vector<std::string>& all = gpus_.at(f.host_key());
    std::vector<std::string> names;
    constexpr std::size_t kShown = 12;  // "GPU-1a2b3c4d"
    for (const std::string& uuid : all) names.push_back(uuid.substr(0, kShown));
    return fmt::format("{} on the host, {} visible to each rank: {}", all.size(),
                       f.gpus.size() == all.size() ? "all" : std::to_string(f.gpus.size()),
                       fmt::join(names, ", "));
  }

  void output() {
    const OutputTest& test = launch_.measured.output;
    if (test.path.empty()) return line("results", "not tested (--output FILE or FOLDER)");
    if (!test.error.empty()) return line("results", test.error);
    std::map<LockSeen, std::vector<int>> seen;
    for (std::size_t r = 0; r < test.seen.size(); r++) seen[test.seen[r]].push_back(static_cast<int>(r));
    std::string locks;
    for (const auto& [how, ranks] : seen) {
      const char* text = how == LockSeen::held     ? "kept"
                         : how == LockSeen::free   ? "NOT kept"
                         : how == LockSeen::absent ? "the folder is not there"
                                                   : "none";
      locks += fmt::format("{}{}{}", locks.empty() ? "" : "; ", text,
                           seen.size() > 1 ? fmt::format(" ({})", name_ranks(ranks)) : "");
    }
    line("results", fmt::format("{}: {} free; locks: {}", test.path, with_byte_unit(test.free_bytes), locks));
  }

  void exchange() {
    const Measurements& found = launch_.measured;
    if (found.all_reduce.empty()) return;
    double most = 0;
    for (const double ahead : found.clock_ahead_s) most = std::max(most, std::abs(ahead));
    line("clocks", fmt::format("within {:.1f} ms of rank 0's", 1e3 * most));
    std::string times;
    for (const auto& [bytes, us] : found.all_reduce)
      times += fmt::format("{}{} {:.0f} us", times.empty() ? "" : ", ", with_byte_unit(bytes), us);
    const char* how = found.shares_memory ? "in shared memory"
                      : found.two_levels
                          ? "in two levels, in shared memory on a host and by messages between hosts"
                          : "by messages";
    line("all-reduce", fmt::format("over all ranks, {}: {}", how, times));
  }

  const Launch& launch_;
  std::map<HostKey, std::set<int>> units_;            // by host: that any of its ranks may use
  std::map<HostKey, std::vector<std::string>> gpus_;  // by host: that any of its ranks sees
  std::string text_;
};

}  // namespace

std::string doctor_table(const Launch& launch, const std::string& trial) {
  return Table(launch).text(trial);
}

std::string doctor_verdict(const std::vector<Finding>& findings, int ranks) {
  std::string text;
  std::size_t problems = 0;
  for (const Finding& finding : findings) {
    text += fmt::format("{}: {} / change: {}\n", finding.fails ? "problem" : "note", finding.what,
                        finding.change);
    problems += finding.fails;
  }
  const std::string job = fmt::format("a job of {} rank{} like this", ranks, ranks == 1 ? "" : "s");
  if (problems > 0)
    text += fmt::format("verdict: {} would fail ({} problem{})\n", job, problems, problems > 1 ? "s" : "");
  else
    text += fmt::format("verdict: {} can run{}\n", job, findings.empty() ? "" : "; see the notes");
  return text;
}

}  // namespace ptrt
