// The fusion's all-reduce against MPI_Allreduce, one process a rank: medians of alternating turns, so that both
// see the machine in the same state. perf/bench_fusion.py drives it.
//
//     mpirun -n N bench_fusion TURNS [every]
//
// prints, on rank 0, {"ranks": N, "cells": [{"bytes", "ours_us", "mpi_us"}]}, with `every` also "ways_us":
// the times of each algorithm.
//
// Which algorithm MPI_Allreduce takes is Open MPI's choice or its settings' (OMPI_MCA_coll_tuned_*).
#include <mpi.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "kernels/make_cpu_backend.h"
#include "runtime/comm/mpi_comm.h"
#include "runtime/sync/host_all_reduce.h"

namespace ptrt {
namespace {

constexpr std::int64_t kSmallest = 4096, kLargest = 1048576;  // bytes
constexpr int kWarmup = 5;
// Calls in a row, as in a forward pass: ranks leave the barrier before them at different times.
constexpr int kRow = 5;

double median(std::vector<double> samples) {
  std::ranges::nth_element(samples, samples.begin() + std::ssize(samples) / 2);
  return samples[samples.size() / 2];
}

// Time of one call of a row, of the slowest rank: ranks start together.
template <typename Body>
double slowest_us(const Body& body) {
  MPI_Barrier(MPI_COMM_WORLD);
  const std::int64_t start = now_ns();
  for (int call = 0; call < kRow; call++) body();
  double mine = 1e-3 * static_cast<double>(now_ns() - start) / kRow, all = 0;
  MPI_Allreduce(&mine, &all, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return all;
}

void run(int turns, bool every_algorithm) {
  const auto job = make_mpi_job_comm();
  const bool oversubscribed = job->host_ranks() > static_cast<int>(std::thread::hardware_concurrency());
  const auto comm = job->split(0, oversubscribed ? Waiting::yielding : Waiting::spinning);
  const auto backend = make_cpu_backend({.threads = 1, .oversubscribed = oversubscribed});
  StepState state;
  HostAllReduce all_reduce(*comm, *backend, state, 1, kLargest / 4,
                           every_algorithm ? std::optional(AllReduceAlgorithm::one_shot) : std::nullopt);
  std::vector<std::optional<AllReduceAlgorithm>> algorithms{std::nullopt};
  if (every_algorithm)
    for (const AllReduceAlgorithm algorithm : kAllReduceAlgorithms)
      if (all_reduce.offers(algorithm)) algorithms.emplace_back(algorithm);
  std::vector<float> part(kLargest / 4, 1.0f), ours(kLargest / 4), theirs(kLargest / 4);
  nlohmann::ordered_json cells = nlohmann::ordered_json::array();
  for (std::int64_t bytes = kSmallest; bytes <= kLargest; bytes *= 4) {
    const std::int64_t count = bytes / 4;
    std::vector<std::vector<double>> ours_us(algorithms.size());
    std::vector<double> mpi_us;
    for (int turn = -kWarmup; turn < turns; turn++) {
      const float* parts[] = {part.data()};
      for (std::size_t w = 0; w < algorithms.size(); w++) {
        all_reduce.set_algorithm(algorithms[w]);
        const double a = slowest_us([&] { all_reduce.sum(parts, count, 1.0f, nullptr, ours.data()); });
        if (turn >= 0) ours_us[w].push_back(a);
      }
      const double b = slowest_us([&] {
        MPI_Allreduce(part.data(), theirs.data(), static_cast<int>(count), MPI_FLOAT, MPI_SUM,
                      MPI_COMM_WORLD);
      });
      if (turn >= 0) mpi_us.push_back(b);
    }
    if (!std::equal(ours.begin(), ours.begin() + count, theirs.begin())) throw_failure("the sums differ");
    nlohmann::ordered_json cell;
    cell["bytes"] = bytes;
    cell["ours_us"] = median(ours_us[0]);
    for (std::size_t w = 1; w < algorithms.size(); w++)
      cell["ways_us"][std::string(to_string(*algorithms[w]))] = median(ours_us[w]);
    cell["mpi_us"] = median(mpi_us);
    cells.push_back(cell);
  }
  nlohmann::ordered_json result;
  result["ranks"] = job->size();
  result["cells"] = cells;
  if (job->rank() == 0) std::puts(result.dump().c_str());
}

}  // namespace
}  // namespace ptrt

int main(int argc, char** argv) {
  try {
    ptrt::run(argc > 1 ? std::atoi(argv[1]) : 100, argc > 2 && std::string(argv[2]) == "every");
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_fusion: %s\n", e.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
}
