#include "cuda_layer.h"

#include <numeric>
#include <vector>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

constexpr std::int64_t kHidden = 4096, kHeads = 32, kKvHeads = 8, kHeadDim = 128, kFfn = 14336;
constexpr std::int64_t kQWidth = kHeads * kHeadDim, kKvWidth = kKvHeads * kHeadDim;

struct Weights {
  TrackWeights wq, wk, wv, wo, gate, up, down;
};

// Assigns consecutive pieces of the memory.
class Pieces {
 public:
  Pieces(std::byte* memory, std::size_t bytes, DType type) : next_(memory), left_(bytes), type_(type) {}

  std::byte* take(std::size_t bytes) {
    bytes = (bytes + 255) / 256 * 256;
    PTRT_CHECK(bytes <= left_);
    std::byte* piece = next_;
    next_ += bytes;
    left_ -= bytes;
    return piece;
  }
  TrackWeights matrix(std::int64_t out, std::int64_t in) {
    return {{take(static_cast<std::size_t>(out * in) * size_of(type_)), type_, 1, out, in}};
  }
  Tensor tensor(std::int64_t rows, std::int64_t width, DType type) {
    return {take(static_cast<std::size_t>(rows * width) * size_of(type)), 1, rows, width, rows * width, type};
  }
  Weights weights() {
    return {matrix(kQWidth, kHidden), matrix(kKvWidth, kHidden), matrix(kKvWidth, kHidden),
            matrix(kHidden, kQWidth), matrix(kFfn, kHidden),     matrix(kFfn, kHidden),
            matrix(kHidden, kFfn)};
  }

 private:
  std::byte* next_;
  std::size_t left_;
  DType type_;
};

}  // namespace

LayerTime measure_layer(CudaBackend& backend, GraphTimer& timer, std::byte* memory, std::size_t bytes,
                        std::int64_t rows, std::int64_t context, LayerParts parts) {
  constexpr int kLayers = 8;
  const DType type = backend.traits().activation_dtype;
  Pieces pieces(memory, bytes, type);
  const Tensor h = pieces.tensor(rows, kHidden, DType::float32);
  backend.write(std::vector<std::byte>(static_cast<std::size_t>(rows * kHidden) * sizeof(float)),
                static_cast<std::byte*>(h.data));
  std::byte* norm_weights = pieces.take(kHidden * sizeof(float));
  const std::vector<float> ones(kHidden, 1.0f);
  backend.write(std::as_bytes(std::span(ones)), norm_weights);
  const TrackWeights norm{{norm_weights, DType::float32, 1, 1, kHidden}};
  const Tensor angles = pieces.tensor(rows, kHeadDim, DType::float32);
  backend.write(std::vector<std::byte>(static_cast<std::size_t>(rows * kHeadDim) * sizeof(float)),
                static_cast<std::byte*>(angles.data));
  const Tensor normed = pieces.tensor(rows, kHidden, type), q = pieces.tensor(rows, kQWidth, type),
               k = pieces.tensor(rows, kKvWidth, type), v = pieces.tensor(rows, kKvWidth, type),
               attn_out = pieces.tensor(rows, kQWidth, type), out = pieces.tensor(rows, kHidden, type),
               gate = pieces.tensor(rows, kFfn, type), up = pieces.tensor(rows, kFfn, type);

  const std::int64_t slot_pages = (context + kPageTokens - 1) / kPageTokens;
  KvPool pool{nullptr, type, 1, kLayers, rows * slot_pages, kKvHeads, kHeadDim};
  pool.data = pieces.take(pool.bytes());
  std::vector<Weights> weights;
  for (int i = 0; i < kLayers; i++) weights.push_back(pieces.weights());

  std::vector<std::int32_t> positions(static_cast<std::size_t>(rows), static_cast<std::int32_t>(context) - 1),
      slots(positions.size()), pages(static_cast<std::size_t>(rows * slot_pages));
  std::iota(slots.begin(), slots.end(), 0);
  std::iota(pages.begin(), pages.end(), 0);
  const StepRows step{positions, slots, pages, slot_pages};
  backend.set_step_inputs(std::vector<std::int32_t>(positions.size(), 0), step);

  const bool norms = parts != LayerParts::gemms, whole = parts == LayerParts::whole;
  const double us = timer.median_us(kLayers, [&](int i) {
    const Weights& w = weights[static_cast<std::size_t>(i)];
    if (norms) backend.add_rms_norm(out, h, norm, 1e-5f, normed);
    const LinearJob qkv[] = {{&w.wq, normed, q}, {&w.wk, normed, k}, {&w.wv, normed, v}};
    backend.linear(qkv);
    if (whole) {
      backend.rope_append({kHeads, kKvHeads, kHeadDim}, {}, {}, angles, q, k, v, step, i, pool);
      backend.attention({kHeads, kKvHeads, kHeadDim}, q, step, i, pool, attn_out);
    }
    const LinearJob wo{&w.wo, attn_out, out};
    backend.linear({&wo, 1});
    if (norms) backend.add_rms_norm(out, h, norm, 1e-5f, normed);
    backend.gated_linear(FfnActivation::silu, {&w.gate, normed, gate}, {&w.up, normed, up});
    const LinearJob down{&w.down, gate, out};
    backend.linear({&down, 1});
  });
  const double elements = kHidden * (2.0 * kQWidth + 2.0 * kKvWidth + 3.0 * kFfn);
  const double kv = whole ? static_cast<double>(rows * context * 2 * kKvWidth) : 0;
  return {us, static_cast<double>(size_of(type)) * (elements + kv)};
}

}  // namespace ptrt
