#include "kernels/base/host_memory.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string_view>
#include <vector>

namespace ptrt {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;

// A whole number at the start of a text, as files of /sys/fs/cgroup and Slurm's variables have it; none for
// "max" and what does not fit 64 bits.
std::optional<std::int64_t> parse_count(std::string_view text) {
  std::int64_t value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = stop == text.data() + text.size() || *stop == '\n';
  return error == std::errc() && whole && value >= 0 ? std::optional(value) : std::nullopt;
}

std::vector<std::string> lines_of(const std::string& path) {
  std::ifstream in(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, at);) parts.push_back(part);
  return parts;
}

bool contains(const std::vector<std::string>& list, const std::string& item) {
  return std::ranges::find(list, item) != list.end();
}

// A hierarchy of cgroups that has the memory controller: v2, or one of v1.
struct Hierarchy {
  bool v2 = false;
  std::string root;   // the cgroup that is mounted
  std::string mount;  // where
};

// A line of mountinfo: "36 35 98:0 ROOT MOUNT OPTIONS [FIELDS] - TYPE SOURCE SUPER_OPTIONS".
std::vector<Hierarchy> hierarchies(const std::string& mounts) {
  std::vector<Hierarchy> found;
  for (const std::string& line : lines_of(mounts)) {
    const std::vector<std::string> fields = split(line, ' ');
    const auto dash = std::ranges::find(fields, "-");
    if (fields.size() < 7 || fields.end() - dash < 4) continue;
    const std::string &type = dash[1], &options = dash[3];
    if (type == "cgroup2" || (type == "cgroup" && contains(split(options, ','), "memory")))
      found.push_back({type == "cgroup2", fields[3], fields[4]});
  }
  return found;
}

// This process's cgroup in it; a line of /proc/self/cgroup is "ID:CONTROLLERS:PATH", of v2 "0::PATH".
std::string cgroup_in(const Hierarchy& hierarchy, const std::string& cgroups) {
  for (const std::string& line : lines_of(cgroups)) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (hierarchy.v2 ? controllers.empty() : contains(split(controllers, ','), "memory"))
      return line.substr(second + 1);
  }
  return "/";
}

// Its name below the mount. A container may see only its own cgroup, mounted as if it were the root.
std::string below_mount(const Hierarchy& hierarchy, std::string cgroup) {
  const std::string& root = hierarchy.root;
  if (root != "/") {
    if (!cgroup.starts_with(root)) return "";
    cgroup = cgroup.substr(root.size());
  }
  return cgroup.find("/..") == std::string::npos && cgroup != "/" ? cgroup : "";
}

class Limits {
 public:
  explicit Limits(const MemorySources& sources) : sources_(sources) {
    const auto pages = static_cast<std::int64_t>(sysconf(_SC_PHYS_PAGES));
    struct sysinfo host {};
    sysinfo(&host);
    least_.swap_bytes =
        sources.swap_bytes.value_or(static_cast<std::int64_t>(host.totalswap) * host.mem_unit);
    least_.bytes = sources.physical_bytes.value_or(pages * sysconf(_SC_PAGESIZE));
    for (const Hierarchy& hierarchy : hierarchies(sources.mounts)) add_cgroups(hierarchy);
    add_slurm();
  }

  const MemoryLimit& least() const { return least_; }

 private:
  void add(std::optional<std::int64_t> bytes, const std::string& source) {
    if (bytes && *bytes < least_.bytes) least_ = {.bytes = *bytes, .source = source};
  }

  void add_cgroups(const Hierarchy& hierarchy) {
    const char* const file = hierarchy.v2 ? "memory.max" : "memory.limit_in_bytes";
    std::string name = below_mount(hierarchy, cgroup_in(hierarchy, sources_.cgroups));
    for (;;) {
      const auto lines = lines_of(hierarchy.mount + name + "/" + file);
      if (!lines.empty())
        add(parse_count(lines[0]),
            fmt::format("the memory limit of the cgroup {}", name.empty() ? "/" : name));
      if (name.empty()) break;
      name.resize(name.rfind('/'));
    }
    // v1 tells of limits around the mount too.
    for (const std::string& line : lines_of(hierarchy.mount + "/memory.stat"))
      if (constexpr std::string_view kKey = "hierarchical_memory_limit ";
          !hierarchy.v2 && line.starts_with(kKey))
        add(parse_count(std::string_view(line).substr(kKey.size())), "the memory limit around the cgroup");
  }

  // In MiB; 0 stands for all memory of the node.
  std::optional<std::int64_t> slurm_mib(const char* name) const {
    const char* const text = sources_.environment ? sources_.environment(name) : std::getenv(name);
    const auto value = text != nullptr ? parse_count(text) : std::nullopt;
    return value && *value > 0 && *value < (std::int64_t{1} << 40) ? value : std::nullopt;
  }

  void add_slurm() {
    if (!slurm_mib("SLURM_JOB_ID")) return;
    if (const auto node = slurm_mib("SLURM_MEM_PER_NODE")) add(*node * kMiB, "SLURM_MEM_PER_NODE");
    const auto per_cpu = slurm_mib("SLURM_MEM_PER_CPU"), cpus = slurm_mib("SLURM_CPUS_ON_NODE");
    if (per_cpu && cpus && *cpus < (1 << 20))
      add(std::min(*per_cpu * *cpus, std::int64_t{1} << 42) * kMiB, "SLURM_MEM_PER_CPU");
  }

  const MemorySources& sources_;
  MemoryLimit least_;
};

std::optional<std::int64_t> free_address_space() {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return std::nullopt;
  const auto lines = lines_of("/proc/self/statm");  // "SIZE RESIDENT ...", in pages
  const auto pages = lines.empty() ? std::nullopt : parse_count(split(lines[0], ' ')[0]);
  return std::max<std::int64_t>(
      0, static_cast<std::int64_t>(limit.rlim_cur) - pages.value_or(0) * sysconf(_SC_PAGESIZE));
}

}  // namespace

MemoryLimit memory_limit_of_rank(int ranks, const MemorySources& sources) {
  MemoryLimit limit = Limits(sources).least();
  limit.bytes /= ranks;
  limit.swap_bytes /= ranks;
  const auto own = sources.address_space ? sources.address_space() : free_address_space();
  if (own && *own < limit.bytes) limit = {.bytes = *own, .source = "ulimit -v", .counts_mapped_files = true};
  return limit;
}

}  // namespace ptrt
