// Every tensor of a model: its path in the file, its shape and who owns it (docs/SPEC.md, The
// file).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/weight_source.h"
#include "model_io/config/model_config.h"

namespace ptrt {

enum class TensorId : std::uint8_t {
  // Shared.
  embedding,
  lm_head,
  final_norm,
  // Of a track block.
  dispatch_norm,
  combine_norm,
  // Of a layer.
  attn_norm,
  attn_output_norm,
  attn_post_norm,
  ffn_norm,
  ffn_output_norm,
  ffn_post_norm,
  wq,
  wk,
  wv,
  wo,
  bq,
  bk,
  bv,
  bo,
  q_norm,
  k_norm,
  // Its dense FFN.
  w_gate,
  w_up,
  w_down,
  // Its mixture of experts.
  router,
  expert_gate,
  expert_up,
  expert_down,
};

struct TensorSpec {
  std::string path;                 // "/tracks/03/layers/007/wq"
  std::vector<std::int64_t> shape;  // of the dataset
  WeightRole role = WeightRole::matrix;
  TensorId id = TensorId::embedding;

  bool is_bias() const {
    return id == TensorId::bq || id == TensorId::bk || id == TensorId::bv || id == TensorId::bo;
  }
  std::int64_t elements() const;
  // What a backend loads, where it is stored in that type; `widened` as in WeightSpec.
  WeightSpec weight(DType dtype, DType widened = DType::float32) const;
};

// The dataset of the scales of an int8 or float8 tensor, "/tracks/03/layers/007/wq.scale", and its shape.
std::string scale_path(const TensorSpec& spec);
std::vector<std::int64_t> scale_shape(const TensorSpec& spec, DType dtype);

std::string track_group(std::int64_t track);                     // "/tracks/03"
std::string layer_path(std::int64_t track, std::int64_t layer);  // "/tracks/03/layers/007"
std::string block_path(std::int64_t track, std::int64_t block);  // "/tracks/03/blocks/01"

std::vector<TensorSpec> shared_tensors(const ModelConfig& config);
// All tensors of a track: those of its blocks, then those of its layers.
std::vector<TensorSpec> track_tensors(const ModelConfig& config, std::int64_t track);
std::vector<TensorSpec> model_tensors(const ModelConfig& config);  // shared, then track by track
std::vector<TensorSpec> block_tensors(const ModelConfig& config, std::int64_t track, std::int64_t block);
std::vector<TensorSpec> layer_tensors(const ModelConfig& config, std::int64_t track, std::int64_t layer);

}  // namespace ptrt
