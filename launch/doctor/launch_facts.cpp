#include "launch/doctor/launch_facts.h"

#include <fmt/ranges.h>
#include <sys/statvfs.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"
#include "kernels/base/host_memory.h"
#include "kernels/cuda/plugin.h"
#include "launch/job/program_version.h"
#include "launch/session/instruction_set.h"
#include "model_io/hdf5/h5_file.h"
#include "runtime/comm/mpi_comm.h"
#include "runtime/job/launcher.h"

namespace ptrt {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(LaunchFacts, rank, host_rank, host_ranks, host, host_first,
                                                launcher, launched, mpi, mpi_level, mpi_shmem, program,
                                                instruction_sets, instruction_error, allowed_cores, cores,
                                                threads, oversubscribed, memory_bytes, memory_source,
                                                shm_bytes, shm_free_bytes, hdf5, gpus, why_no_gpu, driver,
                                                nccl, nccl_windows_off, model, model_error)

namespace {

using nlohmann::json;

// "Open MPI v4.1.4, package: Debian OpenMPI, ident: …" as "Open MPI 4.1.4"; other libraries' first line.
std::string short_name(const std::string& library) {
  std::string name = library.substr(0, library.find_first_of(",\n"));
  if (const std::size_t v = name.find(" v"); v != std::string::npos) name.erase(v + 1, 1);
  return name;
}

std::string driver_version(int cuda) {
  std::string version;
  std::ifstream in("/sys/module/nvidia/version");
  if (!(in >> version)) version = "of unknown version";
  return fmt::format("{}, CUDA {}.{}", version, cuda / 1000, cuda % 1000 / 10);
}

void add_gpus(LaunchFacts& facts) {
  // As the user set it: whoever loads NCCL may change it (kernels/cuda/host/nccl_library.h).
  const char* windows = std::getenv("NCCL_WIN_ENABLE");
  facts.nccl_windows_off = windows != nullptr && std::string(windows) == "0";
  facts.why_no_gpu = cuda_missing();
  if (!facts.why_no_gpu.empty()) return;
  try {
    facts.gpus = cuda_devices();
    const CudaVersions versions = cuda_versions();
    facts.driver = driver_version(versions.driver);
    facts.nccl = versions.nccl;
  } catch (const Error& error) {
    facts.gpus.clear();
    facts.why_no_gpu = error.what();
  }
}

}  // namespace

LaunchFacts collect_facts(const JobComm& job, const CoreShare& cores) {
  LaunchFacts facts;
  facts.rank = job.rank();
  facts.host = job.host();
  facts.host_rank = job.host_rank();
  facts.host_ranks = job.host_ranks();
  facts.launcher = describe_launcher();
  facts.launched = launched_task().size.value_or(1);
  facts.mpi = short_name(mpi_library_version());
  facts.mpi_level = mpi_thread_level();
  if (const char* shmem = std::getenv("OMPI_MCA_shmem"); shmem != nullptr) facts.mpi_shmem = shmem;
  facts.program = program_version();
  try {
    facts.instruction_sets = own_instruction_sets();
  } catch (const Error& error) {
    facts.instruction_error = error.what();
  }
  facts.allowed_cores = allowed_cores();
  facts.cores = static_cast<int>(cores.cores.size());
  facts.threads = cores.threads;
  facts.oversubscribed = cores.oversubscribed;
  const MemoryLimit memory = memory_limit_of_rank(facts.host_ranks);
  facts.memory_bytes = memory.bytes;
  facts.memory_source = memory.source;
  struct statvfs shm;
  if (statvfs("/dev/shm", &shm) == 0) {
    facts.shm_bytes = static_cast<std::int64_t>(shm.f_blocks) * static_cast<std::int64_t>(shm.f_frsize);
    facts.shm_free_bytes = static_cast<std::int64_t>(shm.f_bavail) * static_cast<std::int64_t>(shm.f_frsize);
  }
  facts.hdf5 = hdf5_version();
  add_gpus(facts);
  return facts;
}

std::string to_text(const LaunchFacts& facts) {
  return json(facts).dump(-1, ' ', false, json::error_handler_t::replace);
}

LaunchFacts parse_facts(const std::string& text) {
  return json::parse(text).get<LaunchFacts>();
}

std::string nccl_text(int version) {
  if (version == 0) return "none";
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

}  // namespace ptrt
