// The activations of a forward pass, with their shapes.
#pragma once

#include <cstdint>

#include "kernels/tensor.h"
#include "model_io/config/model_config.h"
#include "runtime/model/tensor_memory.h"

namespace ptrt {

// Views of memory for the most rows of a step. x, the rope angles, head_rows, h and router are float32; the
// others are of the backend's activation dtype.
struct Activations {
  // Shared by all tracks.
  Tensor x;              // [1, rows, d]        the stream that every track reads
  Tensor cos_sin;        // [1, rows, hd]       rope angles
  Tensor local_cos_sin;  // [1, rows, hd]   those of local layers; cos_sin where they do not differ
  Tensor head_rows;      // [1, logit rows, d]  rows of x whose logits are computed
  Tensor head_in;        // [1, logit rows, d]  these, normed; the same memory where the dtypes are equal

  // For T tracks.
  Tensor h;         // [T, rows, d]               each track's own stream inside a block
  Tensor normed;    // [T, rows, d]               input of a sublayer
  Tensor out;       // [T, rows, d]               output of a sublayer
  Tensor q;         // [T, rows, heads · hd]
  Tensor k;         // [T, rows, kv_heads · hd]
  Tensor v;         // [T, rows, kv_heads · hd]
  Tensor attn_out;  // [T, rows, heads · hd]      attention output before wo
  Tensor gate;      // [T, rows · k, ffn]         k = top_k in a mixture of experts, else 1
  Tensor up;        // [T, rows · k, ffn]
  Tensor router;    // [T, rows, experts]         logits
  Tensor expert;    // [T, rows · top_k, d]

  // Those of one of the tracks.
  Activations track(std::int64_t t) const;
};

// For `tracks` tracks, `rows` rows of a step and `logit_rows` rows of a call for logits. With
// `tensor_parallel`, `out` is float32: the parts of a sum over ranks.
Activations make_activations(TensorMemory& memory, const ModelConfig& config, std::int64_t tracks,
                             std::int64_t rows, std::int64_t logit_rows, DType activation_dtype,
                             bool tensor_parallel);

}  // namespace ptrt
