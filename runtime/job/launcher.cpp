#include "runtime/job/launcher.h"

#include <fmt/ranges.h>
#include <unistd.h>

#include <cctype>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <system_error>
#include <vector>

namespace ptrt {
namespace {

struct Variables {
  const char *rank, *size;
};
// Innermost first: mpirun in a step of Slurm inherits the step's, of as many tasks as it has daemons.
constexpr Variables kLaunchers[] = {
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
    {"PMI_RANK", "PMI_SIZE"},
    {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS"},
    {"PMI_RANK", "MPI_LOCALNRANKS"},
};

std::optional<int> number(const char* variable) {
  const char* text = std::getenv(variable);
  if (text == nullptr) return std::nullopt;
  int value = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, value);
  return error == std::errc() && stop == end && value >= 0 ? std::optional(value) : std::nullopt;
}

std::string this_host() {
  char host[256] = {};
  return gethostname(host, sizeof host - 1) == 0 ? host : "localhost";
}

std::string whole_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Of /proc/PID/stat: "PID (NAME) STATE PARENT …", where the name may hold anything.
bool is_stopped_child_of(const std::filesystem::path& process, pid_t parent) {
  const std::string stat = whole_file(process / "stat");
  const std::size_t name_ends = stat.rfind(')');
  if (name_ends == std::string::npos) return false;
  char state = 0;
  int its_parent = 0;
  std::istringstream(stat.substr(name_ends + 1)) >> state >> its_parent;
  return (state == 'T' || state == 't') && its_parent == parent;
}

std::string rank_of(const std::filesystem::path& process) {
  std::istringstream variables(whole_file(process / "environ"));
  for (std::string variable; std::getline(variables, variable, '\0');)
    for (const char* name : {"OMPI_COMM_WORLD_RANK=", "PMIX_RANK=", "PMI_RANK=", "SLURM_PROCID="})
      if (variable.starts_with(name)) return variable.substr(std::strlen(name));
  return "?";
}

}  // namespace

std::string stopped_ranks_here() {
  std::vector<std::string> ranks;
  std::error_code failed;
  for (std::filesystem::directory_iterator at("/proc", failed), end; !failed && at != end;
       at.increment(failed)) {
    const std::filesystem::path& process = at->path();
    const bool is_number = std::isdigit(static_cast<unsigned char>(process.filename().c_str()[0])) != 0;
    if (is_number && is_stopped_child_of(process, getppid())) ranks.push_back(rank_of(process));
  }
  if (ranks.empty()) return "";
  return fmt::format("rank{} {} ({}), which {} stopped,", ranks.size() > 1 ? "s" : "", fmt::join(ranks, ", "),
                     this_host(), ranks.size() > 1 ? "are" : "is");
}

bool started_by_mpi_launcher() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"})
    if (std::getenv(name) != nullptr) return true;
  return false;
}

LaunchedTask launched_task() {
  for (const Variables& launcher : kLaunchers) {
    const auto size = number(launcher.size);
    if (!size) continue;
    const auto rank = number(launcher.rank);
    return {rank ? rank : number("PMIX_RANK"), size};
  }
  return {number("PMIX_RANK"), std::nullopt};
}

std::optional<int> slurm_cpus_per_task() {
  if (!number("SLURM_JOB_ID")) return std::nullopt;
  const auto cpus = number("SLURM_CPUS_PER_TASK");
  return cpus && *cpus > 0 ? cpus : std::nullopt;
}

std::string describe_launcher() {
  const auto text = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value != nullptr ? value : "");
  };
  const std::string slurm = text("SLURM_JOB_ID"), pmix = text("PMIX_VERSION");
  std::string found = "no launcher";
  if (started_by_mpi_launcher())
    found = !text("OMPI_COMM_WORLD_SIZE").empty() ? "mpirun"
            : !text("SLURM_PROCID").empty()       ? "srun"
                                                  : "a PMI launcher";
  else if (!text("SLURM_STEP_NUM_TASKS").empty())
    found = "srun without PMI";
  if (!pmix.empty())
    found += fmt::format(" (PMIx {})", pmix);
  else if (!text("PMIX_RANK").empty())
    found += " (PMIx)";
  if (!slurm.empty()) found += fmt::format(", Slurm job {}", slurm);
  return found;
}

std::string launched_job() {
  if (const char* name = std::getenv("PMIX_NAMESPACE")) return name;
  const char *job = std::getenv("SLURM_JOB_ID"), *step = std::getenv("SLURM_STEP_ID");
  if (job != nullptr && step != nullptr) return fmt::format("slurm.{}.{}", job, step);
  return fmt::format("parent.{}", getppid());  // the launcher's daemon
}

std::string launched_name() {
  if (!started_by_mpi_launcher()) return "";
  const LaunchedTask task = launched_task();
  const std::string host = this_host();
  const std::string rank = task.rank ? std::to_string(*task.rank) : "?";
  return task.size ? fmt::format("rank {} of {} ({})", rank, *task.size, host)
                   : fmt::format("rank {} ({})", rank, host);
}

}  // namespace ptrt
