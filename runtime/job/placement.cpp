#include "runtime/job/placement.h"

#include <fmt/ranges.h>

#include "kernels/base/error.h"

namespace ptrt {

std::vector<std::int64_t> packed_sizes(std::int64_t total_tracks) {
  std::vector<std::int64_t> sizes;
  for (std::int64_t n = 1; n <= total_tracks; n++)
    if (total_tracks % n == 0) sizes.push_back(n);
  return sizes;
}

namespace {

// A track is served by one rank, or by --tensor-parallel K of them.
[[noreturn]] void throw_misfit(std::int64_t world_size, std::int64_t total_tracks,
                               const PlacementOptions& options) {
  auto sizes = packed_sizes(total_tracks);
  const std::int64_t split = options.tensor_parallel;
  for (std::int64_t& size : sizes) size *= split;
  const std::string tracks =
      fmt::format("{} tracks{}", total_tracks, split > 1 ? fmt::format(" of {} ranks each", split) : "");
  if (options.replicas > 0)
    throw_bad_input(
        "{} ranks do not fit {} in {} replicas: with --replicas {} the number of ranks must be {} "
        "times one of {}",
        world_size, tracks, options.replicas, options.replicas, options.replicas, fmt::join(sizes, ", "));
  throw_bad_input(
      "{} ranks do not fit {}: start {} ranks, or a multiple of {} (replicas), or give --replicas R "
      "with R times one of those",
      world_size, tracks, fmt::join(sizes, ", "), total_tracks * split);
}

}  // namespace

Placement make_placement(std::int64_t world_size, std::int64_t rank, std::int64_t total_tracks,
                         const PlacementOptions& options) {
  PTRT_CHECK(world_size >= 1 && rank >= 0 && rank < world_size && total_tracks >= 1);
  const std::int64_t split = options.tensor_parallel, most = total_tracks * split;
  if (split < 1) throw_bad_input("--tensor-parallel {}: expected 1 or more", split);
  if (options.replicas < 0) throw_bad_input("--replicas {}: expected 1 or more", options.replicas);
  std::int64_t replicas = options.replicas;
  if (replicas == 0) {
    replicas = world_size > most ? world_size / most : 1;
    if (world_size > most && world_size % most != 0) throw_misfit(world_size, total_tracks, options);
  }
  const std::int64_t replica_ranks = world_size / replicas;
  if (world_size % replicas != 0 || replica_ranks % split != 0 || replica_ranks == 0 ||
      total_tracks % (replica_ranks / split) != 0)
    throw_misfit(world_size, total_tracks, options);

  Placement placement;
  placement.world_size = world_size;
  placement.rank = rank;
  placement.total_tracks = total_tracks;
  placement.replicas = replicas;
  placement.replica = rank / replica_ranks;
  placement.replica_ranks = replica_ranks;
  placement.replica_rank = rank % replica_ranks;
  placement.tensor_parallel = split;
  placement.tensor_rank = placement.replica_rank % split;
  placement.tracks = total_tracks / placement.fusion_ranks();
  placement.first_track = placement.fusion_rank() * placement.tracks;
  return placement;
}

}  // namespace ptrt
