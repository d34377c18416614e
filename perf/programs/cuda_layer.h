// One decoder layer of perf/configs/dense_8b.json in a decode step, op after op as the forward pass gives
// them.
#pragma once

#include <cstdint>

#include "graph_timer.h"
#include "kernels/cuda/cuda_backend.h"

namespace ptrt {

enum class LayerParts { products, with_norms, whole };  // whole: RoPE and attention too

struct LayerTime {
  double us = 0, bytes = 0;  // bytes: weights, and keys and values where they are read
};

// Median over replays of a graph of several layers with weights of their own. memory: random numbers of the
// backend's type, from which weights, pages and activations are taken; its step is set to `rows` sequences of
// `context` tokens.
LayerTime measure_layer(CudaBackend& backend, GraphTimer& timer, std::byte* memory, std::size_t bytes,
                        std::int64_t rows, std::int64_t context, LayerParts parts);

}  // namespace ptrt
