// Deterministic random weights. A value hangs on the seed, the tensor's path and the element's index alone,
// so the same seed gives the same weights whatever the order, the file layout or the rank that makes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/tensor.h"
#include "model_io/config/model_config.h"
#include "model_io/config/tensor_names.h"

namespace ptrt {

// Fills `out` with the elements first, first + 1, ... of the tensor, rounded to `dtype` (to nearest, ties to
// even). Norm weights are 1. Matrices have mean 0 and standard deviation 1/sqrt(in); those that write to the
// residual stream (wo, w_down) are smaller by sqrt(2 · layers), so that its scale does not hang on the depth.
void random_elements(const ModelConfig& config, const TensorSpec& spec, std::uint64_t seed, DType dtype,
                     std::int64_t first, std::span<std::byte> out);

}  // namespace ptrt
