// Every tensor of a model: its path in the file, its shape and who owns it (docs/SPEC.md, The file).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/weight_source.h"
#include "model_io/config/model_config.h"

namespace ptrt {

struct TensorSpec {
  std::string path;                 // "/tracks/03/layers/007/wq"
  std::vector<std::int64_t> shape;  // as the dataset has it
  WeightRole role = WeightRole::matrix;

  std::int64_t elements() const;
  WeightSpec weight(DType dtype) const;  // as a backend takes it, stored in that type
};

// The dataset of an int8 tensor's scales, beside the tensor's: "/tracks/03/layers/007/wq.scale".
std::string scale_path(const TensorSpec& spec);

std::string track_group(std::int64_t track);                     // "/tracks/03"
std::string layer_path(std::int64_t track, std::int64_t layer);  // "/tracks/03/layers/007"
std::string block_path(std::int64_t track, std::int64_t block);  // "/tracks/03/blocks/01"

std::vector<TensorSpec> shared_tensors(const ModelConfig& config);
// All of a track: its blocks', then its layers'.
std::vector<TensorSpec> track_tensors(const ModelConfig& config, std::int64_t track);
std::vector<TensorSpec> model_tensors(const ModelConfig& config);  // shared, then track by track
std::vector<TensorSpec> block_tensors(const ModelConfig& config, std::int64_t track, std::int64_t block);
std::vector<TensorSpec> layer_tensors(const ModelConfig& config, std::int64_t track, std::int64_t layer);

}  // namespace ptrt
