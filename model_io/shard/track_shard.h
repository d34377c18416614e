// The weights of one rank: the shared tensors and its own tracks', loaded into a backend's memory.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "model_io/file/model_file.h"
#include "model_io/shard/track_split.h"

namespace ptrt {

// One layer of every local track; TrackWeights that the config does not ask for are empty.
struct LayerWeights {
  TrackWeights attn_norm, attn_output_norm, attn_post_norm;  // [d]
  TrackWeights ffn_norm, ffn_output_norm, ffn_post_norm;     // [d]
  TrackWeights wq, wk, wv, wo;                       // [heads·hd, d] [kv_heads·hd, d] ×2 [d, heads·hd]
  TrackWeights q_norm, k_norm;                       // [head_dim]
  TrackWeights w_gate, w_up, w_down;                 // dense: [ffn, d] ×2 [d, ffn]
  TrackWeights router;                               // moe: [E, d]
  TrackWeights expert_gate, expert_up, expert_down;  // moe: [E, f, d] ×2 [E, d, f]
};

struct BlockWeights {
  TrackWeights dispatch_norm, combine_norm;  // [d]
};

// One local track's entries alone.
LayerWeights of_track(const LayerWeights& layer, std::size_t track);
BlockWeights of_track(const BlockWeights& block, std::size_t track);

// Rows of the vocabulary head; all of them where count is 0.
struct HeadRows {
  std::int64_t first = 0, count = 0;
};

struct TrackShard {
  std::int64_t first_track = 0, tracks = 0;
  Weight embedding;  // [vocab, d]
  Weight lm_head;    // [vocab, d], or its head_rows; the embedding itself when tied and whole
  HeadRows head_rows;
  TrackWeights final_norm;  // [d], one entry
  std::vector<LayerWeights> layers;
  std::vector<BlockWeights> blocks;
  std::uint64_t shared_digest = 0;           // of names, shapes, types and contents of the shared tensors
  std::vector<std::uint64_t> track_digests;  // the same of each local track
};

// Checks every tensor of these tracks against the file's metadata first, then loads them; touches no other
// track. With `split` it loads this rank's part of every matrix of the layers, whose checksums are then not
// checked and stand for the content in the digest. Of a head in parts only these rows are read (beside the
// whole table, where it is tied), so its checksum is not checked; such a file must have one (can_split_head),
// which stands for the content in the digest.
TrackShard load_shard(const ModelFile& file, std::int64_t first_track, std::int64_t tracks, Backend& backend,
                      HeadRows head = {}, TrackSplit split = {});
bool can_split_head(const ModelFile& file);

// The same shard with random weights and no file (as `ptrt init` would write with that seed and dtype).
TrackShard random_shard(const ModelConfig& config, std::uint64_t seed, DType dtype, std::int64_t first_track,
                        std::int64_t tracks, Backend& backend, HeadRows head = {}, TrackSplit split = {});

}  // namespace ptrt
