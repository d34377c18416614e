// The RoPE frequencies of a model's layers.
#pragma once

#include "kernels/jobs.h"
#include "model_io/config/model_config.h"

namespace ptrt {

// Of the layers that take rope_theta, with rope_scaling.
RopeFrequencies rope_frequencies(const ModelConfig& config);
// Of local_rope layers, where config.has_local_rope_theta().
RopeFrequencies local_rope_frequencies(const ModelConfig& config);

}  // namespace ptrt
