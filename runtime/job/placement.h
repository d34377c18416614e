// Which rank serves which replica and which tracks (docs/SPEC.md, The command line).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ptrt {

struct PlacementOptions {
  std::int64_t replicas = 0;         // 0: chosen from world size and tracks
  std::int64_t tensor_parallel = 1;  // ranks that share a track
};

// The ranks of a replica are consecutive, and so are the ranks that share a track and the tracks of
// a rank.
struct Placement {
  std::int64_t world_size = 1, rank = 0;
  std::int64_t total_tracks = 1;
  std::int64_t replicas = 1, replica = 0;
  std::int64_t replica_ranks = 1;    // ranks that serve one replica
  std::int64_t replica_rank = 0;     // this rank among them; 0 leads the replica
  std::int64_t tensor_parallel = 1;  // ranks that share each track
  std::int64_t tensor_rank = 0;      // this rank among them
  std::int64_t first_track = 0, tracks = 1;

  // The ranks that exchange in the fusion: one for each set of tracks, all with the same part of
  // them.
  std::int64_t fusion_ranks() const { return replica_ranks / tensor_parallel; }
  std::int64_t fusion_rank() const { return replica_rank / tensor_parallel; }
  bool leads_replica() const { return replica_rank == 0; }
};

// Throws bad_input, with the world sizes that fit.
Placement make_placement(std::int64_t world_size, std::int64_t rank, std::int64_t total_tracks,
                         const PlacementOptions& options = {});

// World sizes up to one rank a track that serve a single replica: the divisors of `total_tracks`.
std::vector<std::int64_t> packed_sizes(std::int64_t total_tracks);

}  // namespace ptrt
