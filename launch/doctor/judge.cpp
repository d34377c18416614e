#include "launch/doctor/judge.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <set>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/nccl_version.h"
#include "launch/host/device_binding.h"
#include "launch/session/instruction_set.h"
#include "runtime/serving/memory_plan.h"

namespace ptrt {
namespace {

constexpr std::int64_t kMpiSegment = std::int64_t{4} << 20;  // Open MPI's, a rank
constexpr std::int64_t kSumSegment = std::int64_t{2} << 20;  // two halves of up to 1 MiB, a rank
constexpr double kClockTolerance = 1.0;                      // seconds
constexpr std::int64_t kLittleSpace = std::int64_t{64} << 20;

using Ranks = std::vector<int>;

bool shm_is_small(const LaunchFacts& facts) {
  return facts.host_ranks > 1 && facts.shm_bytes > 0 && facts.shm_bytes < shm_needed(facts.host_ranks);
}

// Open MPI's default takes a file system without a limit for one without space.
bool shm_seems_full(const LaunchFacts& facts) {
  return facts.host_ranks > 1 && facts.shm_bytes == 0 && facts.mpi.starts_with("Open MPI") &&
         facts.mpi_shmem != "posix";
}

// "rank 2 (host b)", "ranks 4-7 (hosts b, c)".
std::string with_hosts(const Launch& launch, const Ranks& ranks) {
  std::vector<std::string> hosts;
  for (const int r : ranks) {
    const std::string& host = launch.ranks[static_cast<std::size_t>(r)].host;
    if (std::ranges::find(hosts, host) == hosts.end()) hosts.push_back(host);
  }
  constexpr std::size_t kMostHosts = 4;
  const std::size_t shown = std::min(hosts.size(), kMostHosts);
  return fmt::format("{} ({} {}{})", name_ranks(ranks), hosts.size() > 1 ? "hosts" : "host",
                     fmt::join(hosts.begin(), hosts.begin() + static_cast<std::ptrdiff_t>(shown), ", "),
                     hosts.size() > shown ? ", …" : "");
}

// The ranks that have each value, values in the order of their first ranks; ranks without one are left out.
std::vector<std::pair<std::string, Ranks>> groups(
    const Launch& launch, const std::function<std::string(const LaunchFacts&)>& value) {
  std::vector<std::pair<std::string, Ranks>> found;
  for (const LaunchFacts& facts : launch.ranks) {
    const std::string text = value(facts);
    if (text.empty()) continue;
    auto group = std::ranges::find(found, text, [](const auto& g) { return g.first; });
    if (group == found.end()) group = found.insert(found.end(), {text, {}});
    group->second.push_back(facts.rank);
  }
  return found;
}

std::string name_groups(const Launch& launch, const std::vector<std::pair<std::string, Ranks>>& values) {
  std::string text;
  for (const auto& [value, ranks] : values)
    text += fmt::format("{}{} on {}", text.empty() ? "" : ", ", value, with_hosts(launch, ranks));
  return text;
}

class Judge {
 public:
  explicit Judge(const Launch& launch) : launch_(launch) {}

  std::vector<Finding> all() {
    processes();
    programs();
    instruction_sets();
    models();
    if (gpus()) nccl();
    shared_memory();
    output();
    cores();
    clocks();
    std::stable_partition(found_.begin(), found_.end(), [](const Finding& finding) { return finding.fails; });
    return std::move(found_);
  }

 private:
  void fails(std::string what, std::string change) {
    found_.push_back({true, std::move(what), std::move(change)});
  }
  void notes(std::string what, std::string change) {
    found_.push_back({false, std::move(what), std::move(change)});
  }
  int size() const { return static_cast<int>(launch_.ranks.size()); }
  const LaunchFacts& first() const { return launch_.ranks.front(); }
  // The first rank of every host, in order.
  std::vector<const LaunchFacts*> hosts() const {
    std::vector<const LaunchFacts*> firsts;
    for (const LaunchFacts& facts : launch_.ranks)
      if (facts.host_rank == 0) firsts.push_back(&facts);
    return firsts;
  }

  void processes() {
    if (size() == 1 && first().launched > 1)
      notes(fmt::format("the launcher started {} processes and MPI joins none of them: each runs alone",
                        first().launched),
            "use the launcher of the MPI library that ptrt is linked with: mpirun, or srun --mpi=pmix");
  }

  void programs() {
    if (const auto versions = groups(launch_, [](const auto& f) { return f.program; }); versions.size() > 1)
      fails(fmt::format("the ranks run different programs: {}", name_groups(launch_, versions)),
            "install one build on every host, and start it by the same path");
    if (const auto mpi = groups(launch_, [](const auto& f) { return f.mpi; }); mpi.size() > 1)
      fails(fmt::format("the ranks run different MPI libraries: {}", name_groups(launch_, mpi)),
            "load the same MPI module on every host; see LD_LIBRARY_PATH");
  }

  void instruction_sets() {
    for (const auto& [error, ranks] : groups(launch_, [](const auto& f) { return f.instruction_error; }))
      fails(fmt::format("{}: {}", with_hosts(launch_, ranks), error),
            "unset PTRT_SIMD_TARGET, or name one of these");
    std::vector<std::vector<std::string>> sets;
    for (const LaunchFacts& facts : launch_.ranks)
      if (!facts.instruction_sets.empty()) sets.push_back(facts.instruction_sets);
    const auto best = groups(launch_, [](const LaunchFacts& f) {
      return f.instruction_sets.empty() ? std::string() : f.instruction_sets.front();
    });
    if (best.size() < 2) return;
    const auto common = best_common(sets);
    if (!common)
      return fails(fmt::format("no instruction set is common to all ranks: {}", name_groups(launch_, best)),
                   "use hosts of one architecture (Slurm: --constraint)");
    notes(
        fmt::format("processors differ, so all ranks compute with {}, and results have its bits: {}", *common,
                    name_groups(launch_, best)),
        "use hosts of one kind (Slurm: --constraint) for speed, or PTRT_SIMD_TARGET to repeat these results "
        "elsewhere");
  }

  void models() {
    for (const auto& [error, ranks] : groups(launch_, [](const auto& f) { return f.model_error; })) {
      const bool all = std::ssize(ranks) == size();
      fails(
          fmt::format("{} read the model: {}",
                      all && size() > 1 ? "no rank can" : with_hosts(launch_, ranks) + " cannot", error),
          all ? "give the path of a model file that these hosts can read"
              : "put the model on a file system that all hosts see, or a copy at this path on each of them");
    }
  }

  // GPUs as a job would deal them on each host. Whether it would run on them, or asks for them.
  bool gpus() {
    if (launch_.device == Device::cpu) return false;
    const bool asked = launch_.device == Device::cuda;
    const auto without = groups(launch_, [](const LaunchFacts& f) {
      return !f.gpus.empty() ? std::string() : f.why_no_gpu.empty() ? "no CUDA device" : f.why_no_gpu;
    });
    Ranks some;
    for (const auto& [why, ranks] : without) {
      some.insert(some.end(), ranks.begin(), ranks.end());
      if (asked)
        fails(
            fmt::format("{}: --backend cuda, but {}", with_hosts(launch_, ranks), why),
            "start these ranks where GPUs are and visible (Slurm: --gpus-per-task=1), or give --backend cpu");
    }
    if (std::ssize(some) == size()) return asked;
    if (!some.empty()) {
      std::ranges::sort(some);
      if (!asked)
        notes(fmt::format("{} see no GPU, so all ranks run on the CPU", with_hosts(launch_, some)),
              "show every rank a GPU (Slurm: --gpus-per-task=1), or leave out the hosts without one");
      return asked;
    }
    return deal_gpus(asked) || asked;
  }

  // Whether there is one for every rank.
  bool deal_gpus(bool asked) {
    bool enough = true;
    std::map<std::pair<std::string, int>, std::vector<HostGpus>> by_host;
    for (const LaunchFacts& facts : launch_.ranks)
      by_host[facts.host_key()].push_back({facts.rank, facts.gpus});
    for (const auto& [host, ranks] : by_host) try {
        for (std::size_t i = 0; i < ranks.size(); i++) choose_gpu(ranks, i, launch_.share_gpu);
      } catch (const Error& error) {
        enough = false;
        const char* change = "start one rank a GPU, or give --share-gpu, which is slow";
        if (asked)
          fails(fmt::format("host {}: {}", host.first, error.what()), change);
        else
          notes(fmt::format("host {}: {}; all ranks run on the CPU", host.first, error.what()), change);
      }
    return enough;
  }

  void nccl() {
    if (launch_.replica_ranks == 1) return;  // no sums between ranks
    Ranks slow, without;
    for (const LaunchFacts& facts : launch_.ranks) {
      if (facts.gpus.empty()) continue;
      if (facts.nccl == 0) without.push_back(facts.rank);
      if (!facts.nccl_windows_off && !nccl_waits_for_kernels(facts.nccl)) slow.push_back(facts.rank);
    }
    if (!without.empty())
      notes(
          fmt::format(
              "{}: there is no libnccl.so.2: GPUs add through the hosts' memory (--fusion staged), which is "
              "slow",
              with_hosts(launch_, without)),
          "install NCCL, or name its folder in LD_LIBRARY_PATH");
    if (!slow.empty())
      notes(fmt::format(
                "{}: NCCL {} does without symmetric windows, whose kernels do not wait for what they add: "
                "sums take longer",
                with_hosts(launch_, slow),
                nccl_text(launch_.ranks[static_cast<std::size_t>(slow.front())].nccl)),
            "use NCCL 2.30.7 and later, or 2.27");
    one_nccl_a_replica();
  }

  // Names the first replica that has several; replicas do not meet.
  void one_nccl_a_replica() {
    const auto replica_of = [&](const LaunchFacts& facts) { return facts.rank / launch_.replica_ranks; };
    for (std::int64_t replica = 0; replica <= replica_of(launch_.ranks.back()); replica++) {
      const auto versions = groups(launch_, [&](const LaunchFacts& facts) {
        const bool counts = replica_of(facts) == replica && !facts.gpus.empty() && facts.nccl != 0;
        return counts ? nccl_text(facts.nccl) : std::string();
      });
      if (versions.size() < 2) continue;
      return fails(
          fmt::format("the ranks of {} run different versions of NCCL: {}",
                      size() > launch_.replica_ranks ? fmt::format("replica {}", replica) : "the job",
                      name_groups(launch_, versions)),
          "use one NCCL on the hosts of a replica (LD_LIBRARY_PATH)");
    }
  }

  void shared_memory() {
    for (const LaunchFacts* host : hosts()) {
      const std::int64_t needed = shm_needed(host->host_ranks);
      if (shm_is_small(*host))
        fails(
            fmt::format(
                "host {}: /dev/shm has {}, and its {} ranks need {}: MPI hangs, or ranks die of SIGBUS",
                host->host, with_byte_unit(host->shm_bytes), host->host_ranks, with_byte_unit(needed)),
            fmt::format(
                "make it larger: `docker run --shm-size={0}m`, the host's own /dev/shm in the container, or "
                "`mount -o remount,size={0}m /dev/shm`",
                2 * needed >> 20));
      else if (shm_seems_full(*host))
        fails(
            fmt::format("host {}: /dev/shm has no limit, which Open MPI takes for no space: MPI hangs",
                        host->host),
            fmt::format("set OMPI_MCA_shmem=posix (`mpirun --mca shmem posix`), or give it a size: `mount -t "
                        "tmpfs -o size={}m tmpfs /dev/shm`",
                        2 * needed >> 20));
      else if (host->host_ranks == size() && !launch_.measured.all_reduce.empty() &&
               !launch_.measured.shares_memory)
        notes(fmt::format("host {}: its ranks share no memory, so sums go by messages (/dev/shm: {})",
                          host->host, describe_shm(*host)),
              "remove what other jobs have left in /dev/shm, or make it larger");
    }
  }

  void output() {
    const OutputTest& test = launch_.measured.output;
    if (test.path.empty()) return;
    if (!test.error.empty())
      return fails(fmt::format("rank 0 cannot write results to {}: {}", test.path, test.error),
                   "give -o a folder that is there and that this user may write to");
    const auto that_saw = [&](LockSeen seen) {
      Ranks ranks;
      for (std::size_t r = 0; r < test.seen.size(); r++)
        if (test.seen[r] == seen) ranks.push_back(static_cast<int>(r));
      return ranks;
    };
    const char* change = "never start two runs with the same -o here, or write to a file system with locks";
    if (!that_saw(LockSeen::unsupported).empty())
      notes(fmt::format("the file system of {} has no locks: two runs could use one journal", test.path),
            change);
    if (const Ranks ranks = that_saw(LockSeen::free); !ranks.empty())
      notes(fmt::format(
                "the file system of {} does not keep locks between processes: {} got one that rank 0 holds",
                test.path, with_hosts(launch_, ranks)),
            change);
    if (test.free_bytes < kLittleSpace)
      notes(fmt::format("{} are left on the file system of {}", with_byte_unit(test.free_bytes), test.path),
            "make room: results are there twice for a moment, in the journal and in their file");
  }

  void cores() {
    for (const LaunchFacts* host : hosts()) {
      std::set<int> units;
      Ranks crowded;
      int threads = 0;
      for (const LaunchFacts& facts : launch_.ranks) {
        if (facts.host_key() != host->host_key()) continue;
        for (const CpuSet& core : facts.allowed_cores) units.insert(core.begin(), core.end());
        if (facts.oversubscribed) crowded.push_back(facts.rank);
        threads += facts.threads;
      }
      if (crowded.empty()) continue;
      notes(fmt::format(
                "{}: more threads than processing units ({} threads of {} ranks on the host, units {}): "
                "they take turns, and waiting costs a time slice",
                with_hosts(launch_, crowded), threads, host->host_ranks, fmt::join(units, ",")),
            fmt::format("start at most {} ranks on this host, give each more cores (mpirun --bind-to, Slurm: "
                        "--cpus-per-task), or lower --threads",
                        units.size()));
    }
  }

  void clocks() {
    Ranks off;
    double most = 0;
    for (std::size_t r = 0; r < launch_.measured.clock_ahead_s.size(); r++) {
      const double ahead = launch_.measured.clock_ahead_s[r];
      if (std::abs(ahead) < kClockTolerance) continue;
      off.push_back(static_cast<int>(r));
      if (std::abs(ahead) > std::abs(most)) most = ahead;
    }
    if (!off.empty())
      notes(
          fmt::format(
              "{}: the clock of the day is up to {:.1f} s {} of rank 0's: times in logs and of files do not "
              "compare",
              with_hosts(launch_, off), std::abs(most), most > 0 ? "ahead" : "behind"),
          "synchronise the hosts' clocks (chrony, NTP)");
  }

  const Launch& launch_;
  std::vector<Finding> found_;
};

}  // namespace

std::vector<Finding> judge(const Launch& launch) {
  return Judge(launch).all();
}

bool can_exchange(std::span<const LaunchFacts> ranks) {
  return std::ranges::all_of(ranks, [&](const LaunchFacts& rank) {
    return rank.mpi == ranks.front().mpi && !shm_is_small(rank) && !shm_seems_full(rank);
  });
}

Finding refusal(const std::string& message) {
  const std::pair<const char*, const char*> advice[] = {
      {"not enough memory",
       "ask for more memory (Slurm: --mem, --mem-per-cpu), start fewer ranks on a host or spread the tracks "
       "over more "
       "hosts, or store the weights as int8 (`ptrt quantize`)"},
      {"do not fit the device", "use more GPUs, or fewer tracks a rank"},
      {"--kv-cache-bytes", "give a larger --kv-cache-bytes, or none"},
      {"ranks", "start one of the numbers of ranks that fit, or give --replicas and --tensor-parallel"},
  };
  for (const auto& [word, change] : advice)
    if (message.find(word) != std::string::npos) return {true, message, change};
  return {true, message, "what the message says: a job with these options ends with it"};
}

std::string describe_shm(const LaunchFacts& facts) {
  if (facts.shm_bytes < 0) return "none";
  if (facts.shm_bytes == 0) return "no limit";
  return fmt::format("{}, {} free", with_byte_unit(facts.shm_bytes), with_byte_unit(facts.shm_free_bytes));
}

std::int64_t shm_needed(int host_ranks) {
  return host_ranks * (kMpiSegment + kSumSegment);
}

std::string name_ranks(std::span<const int> ranks) {
  std::string text;
  for (std::size_t i = 0; i < ranks.size();) {
    std::size_t end = i + 1;
    while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) end++;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", ranks[i]);
    if (end > i + 1) text += fmt::format("-{}", ranks[end - 1]);
    i = end;
  }
  return fmt::format("rank{} {}", ranks.size() == 1 ? "" : "s", text);
}

}  // namespace ptrt
