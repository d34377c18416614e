// One decoder layer of a rank in a decode step, with the ops of the forward pass in order.
#pragma once

#include <cstdint>

#include "cuda_shape.h"
#include "graph_timer.h"
#include "kernels/cuda/cuda_backend.h"

namespace ptrt {

enum class LayerParts { gemms, with_norms, whole };  // whole: RoPE and attention too

struct LayerWork {
  std::int64_t rows = 1, context = 192;  // sequences, tokens of each
  LayerParts parts = LayerParts::whole;
  DType matrices = DType::bfloat16;
  bool fp32_out = false;  // of wo and down, as where ranks share a track
};

struct LayerTime {
  double us = 0, bytes = 0;  // bytes: weights, and the keys and values that are read
};

// Median over replays of a graph of several layers with different weights. memory: random numbers
// of the backend's activation dtype; weights, pages and activations are pieces of it. Sets the
// backend's step.
LayerTime measure_layer(CudaBackend& backend, GraphTimer& timer, std::byte* memory, std::size_t bytes,
                        const BenchShape& shape, const LayerWork& work);

}  // namespace ptrt
