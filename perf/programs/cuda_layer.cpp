#include "cuda_layer.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "cuda_weights.h"

namespace ptrt {
namespace {

struct Weights {
  TrackWeights wq, wk, wv, wo, gate, up, down;
};

Weights take_weights(Pieces& pieces, const BenchShape& s, DType type) {
  const auto matrix = [&](std::int64_t out, std::int64_t in) {
    return pieces.matrices(type, s.tracks, out, in);
  };
  return {matrix(s.q_width(), s.hidden), matrix(s.kv_width(), s.hidden), matrix(s.kv_width(), s.hidden),
          matrix(s.hidden, s.q_width()), matrix(s.ffn, s.hidden),        matrix(s.ffn, s.hidden),
          matrix(s.hidden, s.ffn)};
}

double bytes_of(const Weights& w) {
  double bytes = 0;
  for (const TrackWeights* all : {&w.wq, &w.wk, &w.wv, &w.wo, &w.gate, &w.up, &w.down})
    for (const Weight& one : *all) {
      const auto size = cuda::device_weight_bytes(one.dtype, 1, one.out, one.in);
      bytes += static_cast<double>(size.elements + size.scales);
    }
  return bytes;
}

}  // namespace

LayerTime measure_layer(CudaBackend& backend, GraphTimer& timer, std::byte* memory, std::size_t bytes,
                        const BenchShape& shape, const LayerWork& work) {
  // As many as fit, so that the L2 cache has none of the next one.
  const std::int64_t layer_bytes = shape.layer_elements() * static_cast<std::int64_t>(size_of(work.matrices));
  const int layers = static_cast<int>(
      std::clamp<std::int64_t>(static_cast<std::int64_t>(bytes) / 5 * 4 / layer_bytes, 1, 8));
  const DType type = backend.traits().activation_dtype;
  const std::int64_t rows = work.rows, tracks = shape.tracks;
  Pieces pieces(memory, bytes);
  const auto zeros = [&](const Tensor& x) {
    backend.write(
        std::vector<std::byte>(static_cast<std::size_t>(x.tracks * x.rows * x.width) * size_of(x.dtype)),
        static_cast<std::byte*>(x.data));
  };
  const auto rows_of = [&](std::int64_t width, DType dtype) {
    return pieces.tensor(tracks, rows, width, dtype);
  };
  const Tensor h = rows_of(shape.hidden, DType::float32);
  zeros(h);
  std::byte* norm_weights = pieces.take(shape.hidden * std::int64_t{sizeof(float)});
  const std::vector<float> ones(static_cast<std::size_t>(shape.hidden), 1.0f);
  backend.write(std::as_bytes(std::span(ones)), norm_weights);
  const TrackWeights norm(static_cast<std::size_t>(tracks),
                          Weight{norm_weights, DType::float32, 1, 1, shape.hidden});
  const Tensor angles = pieces.tensor(1, rows, shape.head_dim, DType::float32);
  zeros(angles);
  const DType out_type = work.fp32_out ? DType::float32 : type;
  const Tensor normed = rows_of(shape.hidden, type), q = rows_of(shape.q_width(), type),
               k = rows_of(shape.kv_width(), type), v = rows_of(shape.kv_width(), type),
               attn_out = rows_of(shape.q_width(), type), out = rows_of(shape.hidden, out_type),
               gate = rows_of(shape.ffn, type), up = rows_of(shape.ffn, type);

  const std::int64_t slot_pages = (work.context + kPageTokens - 1) / kPageTokens;
  KvPool pool{nullptr, type, tracks, layers, rows * slot_pages, shape.kv_heads, shape.head_dim};
  pool.data = pieces.take(static_cast<std::int64_t>(pool.bytes()));
  std::vector<Weights> weights;
  for (int i = 0; i < layers; i++) weights.push_back(take_weights(pieces, shape, work.matrices));

  std::vector<std::int32_t> positions(static_cast<std::size_t>(rows),
                                      static_cast<std::int32_t>(work.context) - 1),
      slots(positions.size()), pages(static_cast<std::size_t>(rows * slot_pages));
  std::iota(slots.begin(), slots.end(), 0);
  std::iota(pages.begin(), pages.end(), 0);
  const StepRows step{positions, slots, pages, slot_pages};
  backend.set_step_inputs(std::vector<std::int32_t>(positions.size(), 0), step);

  const bool norms = work.parts != LayerParts::gemms, whole = work.parts == LayerParts::whole;
  const double us = timer.median_us(layers, [&](int i) {
    const Weights& w = weights[static_cast<std::size_t>(i)];
    if (norms) backend.add_rms_norm(out, h, norm, 1e-5f, normed);
    const LinearJob qkv[] = {{&w.wq, normed, q}, {&w.wk, normed, k}, {&w.wv, normed, v}};
    backend.linear(qkv);
    if (whole) {
      backend.rope_append(shape.attention(), {}, {}, angles, q, k, v, step, i, pool);
      backend.attention(shape.attention(), q, step, i, pool, attn_out);
    }
    const LinearJob wo{&w.wo, attn_out, out};
    backend.linear({&wo, 1});
    if (norms) backend.add_rms_norm(out, h, norm, 1e-5f, normed);
    backend.gated_linear(FfnActivation::silu, {&w.gate, normed, gate}, {&w.up, normed, up});
    const LinearJob down{&w.down, gate, out};
    backend.linear({&down, 1});
  });
  const std::int64_t kv = whole ? tracks * rows * work.context * 2 * shape.kv_width() : 0;
  return {us, bytes_of(weights[0]) + static_cast<double>(kv) * static_cast<double>(size_of(type))};
}

}  // namespace ptrt
