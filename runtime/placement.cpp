#include "runtime/placement.h"

#include <fmt/ranges.h>

#include "kernels/error.h"

namespace ptrt {

std::vector<std::int64_t> packed_sizes(std::int64_t total_tracks) {
  std::vector<std::int64_t> sizes;
  for (std::int64_t n = 1; n <= total_tracks; n++)
    if (total_tracks % n == 0) sizes.push_back(n);
  return sizes;
}

namespace {

[[noreturn]] void throw_misfit(std::int64_t world_size, std::int64_t total_tracks, std::int64_t replicas) {
  const auto sizes = packed_sizes(total_tracks);
  if (replicas > 0)
    throw_bad_input(
        "{} ranks do not fit {} tracks in {} replicas: with --replicas {} the number of ranks must be {} "
        "times one of {}",
        world_size, total_tracks, replicas, replicas, replicas, fmt::join(sizes, ", "));
  throw_bad_input(
      "{} ranks do not fit {} tracks: start {} ranks, or a multiple of {} (replicas), or give --replicas R "
      "with R "
      "times one of those",
      world_size, total_tracks, fmt::join(sizes, ", "), total_tracks);
}

}  // namespace

Placement make_placement(std::int64_t world_size, std::int64_t rank, std::int64_t total_tracks,
                         const PlacementOptions& options) {
  PTRT_CHECK(world_size >= 1 && rank >= 0 && rank < world_size && total_tracks >= 1);
  if (options.tensor_parallel != 1)
    throw_bad_input("--tensor-parallel {}: this version runs each track on one rank (--tensor-parallel 1)",
                    options.tensor_parallel);
  std::int64_t replicas = options.replicas;
  if (replicas < 0) throw_bad_input("--replicas {}: expected 1 or more", replicas);
  if (replicas == 0) {
    replicas = world_size > total_tracks ? world_size / total_tracks : 1;
    if (world_size > total_tracks && world_size % total_tracks != 0)
      throw_misfit(world_size, total_tracks, 0);
  }
  const std::int64_t replica_ranks = world_size / replicas;
  if (world_size % replicas != 0 || replica_ranks > total_tracks || total_tracks % replica_ranks != 0)
    throw_misfit(world_size, total_tracks, options.replicas);

  Placement placement;
  placement.world_size = world_size;
  placement.rank = rank;
  placement.total_tracks = total_tracks;
  placement.replicas = replicas;
  placement.replica = rank / replica_ranks;
  placement.replica_ranks = replica_ranks;
  placement.replica_rank = rank % replica_ranks;
  placement.tracks = total_tracks / replica_ranks;
  placement.first_track = placement.replica_rank * placement.tracks;
  return placement;
}

}  // namespace ptrt
