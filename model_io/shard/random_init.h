// Deterministic random weights. A value depends only on the seed, the tensor's path and the
// element's index, so the same seed gives the same weights in any order, file layout and rank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "kernels/tensor.h"
#include "model_io/config/model_config.h"
#include "model_io/config/tensor_names.h"
#include "model_io/file/verified_source.h"

namespace ptrt {

// Fills `out` with the elements first, first + 1, ... of the tensor, rounded to `dtype` (to
// nearest, ties to even). Norm weights are 1. Matrices have mean 0 and standard deviation
// 1/sqrt(in), biases 1/2; what writes to the residual stream (wo, bo, w_down) is divided by sqrt(2 ·
// layers), so that its scale is the same for any depth.
void random_elements(const ModelConfig& config, const TensorSpec& spec, std::uint64_t seed, DType dtype,
                     std::int64_t first, std::span<std::byte> out);

// A tensor of such elements; nothing is recorded of it, and what read_columns() gives does not count.
// `config` and `spec` outlive it.
std::unique_ptr<VerifiedSource> random_source(const ModelConfig& config, const TensorSpec& spec,
                                              std::uint64_t seed, DType dtype);

}  // namespace ptrt
