// One decoder layer of perf/configs/dense_8b.json in a decode step, with the ops of the forward
// pass in order.
#pragma once

#include <cstdint>

#include "graph_timer.h"
#include "kernels/cuda/cuda_backend.h"

namespace ptrt {

enum class LayerParts { gemms, with_norms, whole };  // whole: RoPE and attention too

struct LayerTime {
  double us = 0, bytes = 0;  // bytes: weights, and the keys and values that are read
};

// Median over replays of a graph of several layers with different weights. memory: random numbers
// of the backend's activation dtype; weights, pages and activations are pieces of it. Sets the
// backend's step to `rows` sequences of `context` tokens.
LayerTime measure_layer(CudaBackend& backend, GraphTimer& timer, std::byte* memory, std::size_t bytes,
                        std::int64_t rows, std::int64_t context, LayerParts parts);

}  // namespace ptrt
