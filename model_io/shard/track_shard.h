// The weights of one rank, loaded into a backend's memory: the shared tensors and those of its
// tracks.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "model_io/config/tensor_names.h"
#include "model_io/file/model_file.h"
#include "model_io/shard/model_content.h"
#include "model_io/shard/track_split.h"

namespace ptrt {

// One layer of every local track. Weights that the config does not have are empty.
struct LayerWeights {
  TrackWeights attn_norm, attn_output_norm, attn_post_norm;  // [d]
  TrackWeights ffn_norm, ffn_output_norm, ffn_post_norm;     // [d]
  TrackWeights wq, wk, wv, wo;                       // [heads·hd, d] [kv_heads·hd, d] ×2 [d, heads·hd]
  TrackWeights bq, bk, bv, bo;                       // [heads·hd] [kv_heads·hd] ×2 [d]
  TrackWeights q_norm, k_norm;                       // [head_dim]
  TrackWeights w_gate, w_up, w_down;                 // dense: [ffn, d] ×2 [d, ffn]
  TrackWeights router;                               // moe: [E, d]
  TrackWeights expert_gate, expert_up, expert_down;  // moe: [E, f, d] ×2 [E, d, f]
};

struct BlockWeights {
  TrackWeights dispatch_norm, combine_norm;  // [d]
};

// The member that holds that tensor.
TrackWeights& weights_of(LayerWeights& layer, TensorId id);
TrackWeights& weights_of(BlockWeights& block, TensorId id);

// The weights of one local track.
LayerWeights of_track(const LayerWeights& layer, std::size_t track);
BlockWeights of_track(const BlockWeights& block, std::size_t track);

// Rows of the vocabulary head; all of them where count is 0.
struct HeadRows {
  std::int64_t first = 0, count = 0;
};

struct TrackShard {
  std::int64_t first_track = 0, tracks = 0;
  TrackSplit split;  // which part of these tracks
  Weight embedding;  // [vocab, d]
  Weight lm_head;    // [vocab, d], or its head_rows; the embedding itself when tied and whole
  HeadRows head_rows;
  TrackWeights final_norm;  // [d], one entry
  std::vector<LayerWeights> layers;
  std::vector<BlockWeights> blocks;
  std::vector<DatasetContent> contents;  // what was read, in the order of the model's tensors
};

// Checks every tensor of these tracks against the file's metadata, then loads them; touches no other track.
// Throws bad_input, also where a tensor's checksum is not the recorded one. Of a tensor that the rank has only
// a part of, `contents` has what that part contributes: see ModelContent::merge(). That is so for
// * the matrices of the layers and the biases bq, bk and bv, with a `split`;
// * the head, with head rows. A tied head is loaded as the whole table too.
TrackShard load_shard(const ModelFile& file, std::int64_t first_track, std::int64_t tracks, Backend& backend,
                      HeadRows head = {}, TrackSplit split = {});
// The same where the backend's memory holds the weights already (WeightMemory::adopt), as another process has
// loaded and checked them with equal arguments: `contents` are what it read.
TrackShard adopt_shard(const ModelFile& file, std::int64_t first_track, std::int64_t tracks, Backend& backend,
                       HeadRows head, TrackSplit split, std::vector<DatasetContent> contents);
bool is_head(const TensorSpec& spec);

// The same shard with random weights: those that `ptrt init` writes with that seed and dtype.
TrackShard random_shard(const ModelConfig& config, std::uint64_t seed, DType dtype, std::int64_t first_track,
                        std::int64_t tracks, Backend& backend, HeadRows head = {}, TrackSplit split = {});

}  // namespace ptrt
