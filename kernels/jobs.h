// Arguments and results of ops that take more than a few tensors.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/logit_edits.h"
#include "kernels/tensor.h"

namespace ptrt {

// How RMSNorm computes a row: x / sqrt(mean(x²) + eps) · w; with pre_scale z / sqrt(mean(z²) + eps) of
// z = x · w.
struct NormRule {
  NormRule(float epsilon, bool weights_first = false) : eps(epsilon), pre_scale(weights_first) {}
  float eps;
  bool pre_scale;
};

// The activation of an FFN's gate.
enum class FfnActivation : std::uint8_t {
  silu,       // v / (1 + e^-v)
  gelu_tanh,  // v/2 · (1 + tanh(sqrt(2/π) · (v + 0.044715 v³)))
};

// One matrix product for every local track: y[t] = x[t] · w[t]ᵀ, to which the bias is added last.
struct LinearJob {
  const TrackWeights* weights = nullptr;  // [out, in] each
  Tensor x;                               // [tracks or 1, rows, in]
  Tensor y;                               // [tracks, rows, out]
  const TrackWeights* bias = nullptr;     // [out] each, float32; null: none
};

// How RoPE rotates: the pair j of position p by the angle p · frequencies[j].
struct RopeFrequencies {
  std::vector<double> frequencies;  // [head_dim / 2]
  double magnitude = 1;             // a factor on cosines and sines
};

// The heads that a rank computes: with tensor parallelism its share of a track's.
struct AttentionShape {
  std::int64_t heads = 0, kv_heads = 0, head_dim = 0;
  // A row attends to the last `window` positions up to and including its own; 0: to all of them.
  std::int64_t window = 0;
  bool rope = true;
  float norm_eps = 1e-5f;        // of the QK-norm
  bool norm_after_rope = false;  // else the QK-norm comes before RoPE
  float scale = 0;               // of q · k; 0: 1/sqrt(head_dim)

  float query_scale() const { return scale != 0 ? scale : 1.0f / std::sqrt(static_cast<float>(head_dim)); }
};

struct MoeShape {
  std::int64_t experts = 0, top_k = 0, ffn_size = 0;
  float router_logit_cap = 0;   // 0: no cap
  bool normalize_top_k = true;  // weights: softmax over the chosen experts; false: over all of them
  FfnActivation activation = FfnActivation::silu;
};

// Weights and scratch of one mixture-of-experts FFN. The caller allocates the scratch once.
struct MoeJob {
  MoeShape shape;
  const TrackWeights *router = nullptr, *gate = nullptr, *up = nullptr, *down = nullptr;
  Tensor x;              // [tracks, rows, d]
  Tensor y;              // [tracks, rows, d]
  Tensor router_logits;  // [tracks, rows, experts] float32  scratch
  Tensor gate_out;       // [tracks, rows · top_k, ffn_size] scratch
  Tensor up_out;         // [tracks, rows · top_k, ffn_size] scratch
  Tensor expert_out;     // [tracks, rows · top_k, d]        scratch
};

// How the next token of one row is chosen (docs/SPEC.md, Requests).
struct SampleParams {
  float temperature = 0;       // 0: greedy
  std::int32_t top_k = 0;      // 0: all
  float top_p = 1;             // 1: all
  std::uint64_t seed = 0;      // of the request
  std::uint64_t position = 0;  // index of the token in the request's output
  bool want_logprob = false;
  float min_p = 0;  // tokens with less than this part of the likeliest one's probability are dropped; 0 … 1
  const LogitEdits* edits = nullptr;  // of the row's logits, before the choice; null: none
};

struct Sampled {
  std::int32_t token = 0;  // of the vocabulary in any case, so that it can be fed
  // Natural logarithm, before edits and temperature; finite, 0 unless want_logprob. Whether wanted or not, NaN: the
  // row has a logit that is not finite; -infinity: its edits allow no token. Then nothing could be chosen.
  float logprob = 0;

  static Sampled not_finite() { return {0, NAN}; }
  static Sampled none_allowed() { return {0, -std::numeric_limits<float>::infinity()}; }
  bool finite() const { return !std::isnan(logprob); }
  bool is_none_allowed() const { return logprob == -std::numeric_limits<float>::infinity(); }
};

// A token and how likely it is as the next one: the natural logarithm, of the logits as the model gave them.
struct TokenLogprob {
  std::int32_t token = 0;
  float logprob = 0;

  bool operator==(const TokenLogprob&) const = default;
};

inline constexpr std::int64_t kMaxTopLogprobs = 20;
// The likeliest tokens of a row, descending, ties to the lower id: as many as were asked for, the rest undefined.
using TopLogprobs = std::array<TokenLogprob, kMaxTopLogprobs>;

// How likely a given token is as the next one.
struct Scored {
  float logprob = 0;    // natural logarithm; NaN: the row has a logit that is not finite
  bool greedy = false;  // it is the token that temperature 0 chooses
};

}  // namespace ptrt
