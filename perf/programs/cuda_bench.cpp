#include "cuda_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "cuda_kernels.h"
#include "cuda_layer.h"
#include "cuda_weights.h"
#include "kernels/cuda/base/device_traits.h"

namespace ptrt {
namespace {

constexpr std::size_t kArenaBytes = std::size_t{4} << 30;
constexpr std::int64_t kMemoryBoundRows = 64;  // of products, up to this many

class Zeros final : public WeightSource {
 public:
  void read(std::int64_t, std::span<std::byte> rows) override { std::ranges::fill(rows, std::byte{0}); }
  void read_scales(std::int64_t, std::span<std::byte> scales) override {
    std::ranges::fill(scales, std::byte{0});
  }
};

double as_double(std::int64_t n) {
  return static_cast<double>(n);
}

}  // namespace

CudaBench::CudaBench(const std::string& device, const BenchShape& shape, std::int64_t max_rows, DType type,
                     const Ceilings& ceilings)
    : shape_(shape),
      max_rows_(max_rows),
      buffer_elements_(shape.tracks * max_rows * shape.widest()),
      type_(type),
      backend_(device, true, type),
      timer_(backend_.stream()),
      arena_(backend_.allocate(kArenaBytes, "weights and pages of the benchmark")),
      streams_(backend_.allocate(static_cast<std::size_t>(2 * buffer_elements_) * sizeof(float), "streams")),
      activations_(backend_.allocate(static_cast<std::size_t>(4 * buffer_elements_) * 2, "activations")),
      logits_(
          backend_.allocate(static_cast<std::size_t>(kSequences * shape.vocab) * sizeof(float), "logits")),
      ceilings_(ceilings) {
  WorkLimits limits;
  limits.tracks = shape.tracks;
  limits.rows = max_rows;
  limits.logit_rows = limits.sequences = kSequences;
  limits.context = kContext;
  limits.heads = shape.heads;
  limits.head_dim = shape.head_dim;
  backend_.reserve(limits);
  Zeros zeros;  // makes the backend ready for 8-bit matrices
  backend_.load_weight({"zeros", WeightRole::matrix, DType::int8, 1, 8, 32}, zeros);
  fill_arena();
  fill_float32(streams_.get(), static_cast<std::size_t>(2 * buffer_elements_), 1, backend_.stream());
  fill_activations();
  fill_float32(logits_.get(), static_cast<std::size_t>(kSequences * shape.vocab), 10, backend_.stream());
}

Tensor CudaBench::activations(int which, std::int64_t rows, std::int64_t width) const {
  return {activations_.get() + which * buffer_elements_ * 2, shape_.tracks, rows, width, rows * width, type_};
}

Tensor CudaBench::fp32_rows(int which, std::int64_t rows, std::int64_t width) const {
  std::byte* at = streams_.get() + which * buffer_elements_ * std::int64_t{sizeof(float)};
  return {at, shape_.tracks, rows, width, rows * width, DType::float32};
}

void CudaBench::fill_arena() {
  fill_16bit(arena_.get(), kArenaBytes / 2, 0.03f, type_, backend_.stream());
}

void CudaBench::fill_activations() {
  fill_16bit(activations_.get(), static_cast<std::size_t>(4 * buffer_elements_), 1, type_, backend_.stream());
}

std::string CudaBench::label(const std::string& name, DType weights) const {
  std::string text = name;
  if (weights != DType::float32) text += fmt::format(", {} weights", to_string(weights));
  return type_ == DType::bfloat16 ? text : fmt::format("{}, {}", text, to_string(type_));
}

// Bound by memory where no operations are given.
void CudaBench::report(const std::string& name, std::int64_t rows, double us, double bytes,
                       double operations) {
  const bool memory = operations == 0;
  const double rate = memory ? bytes / us / 1e3 : operations / us / 1e6;
  const double share = rate / (memory ? ceilings_.gb_per_s() : ceilings_.gemm_tflops);
  fmt::print("{:<40} {:>6} {:>11.1f} us {:>9.0f} {:<8} {:>5.2f}\n", name, rows, us, rate,
             memory ? "GB/s" : "TFLOP/s", share);
  results_.push_back({{"op", name},
                      {"rows", rows},
                      {"us", us},
                      {"bytes", bytes},
                      {"bound", memory ? "memory" : "arithmetic"},
                      {memory ? "gb_per_s" : "tflops", rate},
                      {"share", share}});
}

void CudaBench::measure_ceilings() {
  constexpr std::size_t kHalf = kArenaBytes / 2;
  std::byte* arena = arena_.get();
  auto* sink = reinterpret_cast<std::uint32_t*>(logits_.get());
  const double copy =
      timer_.median_us(2, [&](int) { copy_bytes(arena, arena + kHalf, kHalf, backend_.stream()); });
  const double read =
      timer_.median_us(2, [&](int) { read_bytes(arena, kArenaBytes, sink, backend_.stream()); });
  constexpr std::int64_t kSide = 8192;
  const Tensor x{arena, 1, kSide, kSide, kSide * kSide, type_};
  const Tensor y{arena + kHalf, 1, kSide, kSide, kSide * kSide, type_};
  const TrackWeights w{{arena + kHalf / 2, type_, 1, kSide, kSide}};
  const LinearJob job{&w, x, y};
  const double product = timer_.median_us(4, [&](int) { backend_.linear({&job, 1}); });
  ceilings_ = {2.0 * kHalf / copy / 1e3, static_cast<double>(kArenaBytes) / read / 1e3,
               2.0 * kSide * kSide * kSide / product / 1e6};
  fill_arena();
  fmt::print("copy {:.0f} GB/s, read {:.0f} GB/s, {} product {:.0f} TFLOP/s\n", ceilings_.copy_gb_per_s,
             ceilings_.read_gb_per_s, to_string(type_), ceilings_.gemm_tflops);
}

void CudaBench::linear(const Product& product, std::int64_t rows, DType weights) {
  const DType kept = matrix_type(weights);
  const std::int64_t tracks = product.shared ? 1 : shape_.tracks;
  std::int64_t set_bytes = 0, out = 0;
  for (const std::int64_t o : product.outs) {
    set_bytes += tracks * matrix_bytes(kept, o, product.in);
    out += o;
  }
  const auto sets =
      static_cast<int>(std::min<std::int64_t>(static_cast<std::int64_t>(kArenaBytes) / set_bytes, 1024));
  const int launches = std::min(sets, rows <= 16 ? 12 : 4);
  Pieces pieces(arena_.get(), kArenaBytes);
  std::vector<std::vector<TrackWeights>> matrices(static_cast<std::size_t>(sets));
  for (auto& set : matrices)
    for (const std::int64_t o : product.outs) set.push_back(pieces.matrices(kept, tracks, o, product.in));
  const auto of_tracks = [&](Tensor x) { return product.shared ? x.track(0) : x; };
  const double us = timer_.median_us(launches, [&](int i) {
    std::vector<LinearJob> jobs;
    for (std::size_t j = 0; j < product.outs.size(); j++) {
      const std::int64_t width = product.outs[j];
      Tensor y = of_tracks(activations(1 + static_cast<int>(j), rows, width));
      if (product.shared) y = {logits_.get(), 1, rows, width, rows * width, DType::float32};
      if (product.fp32_out && !product.shared) y = fp32_rows(0, rows, width);
      jobs.push_back(
          {&matrices[static_cast<std::size_t>(i % sets)][j], of_tracks(activations(0, rows, product.in)), y});
    }
    backend_.linear(jobs);
  });
  const double bytes = as_double(set_bytes + tracks * rows * product.in * 2 +
                                 tracks * rows * out * (product.fp32_out ? 4 : 2));
  report(label(product.name, weights), rows, us, bytes,
         rows <= kMemoryBoundRows ? 0 : 2.0 * as_double(tracks * rows * product.in * out));
}

// Both products and their gate.
void CudaBench::gated_linear(std::int64_t rows, DType weights) {
  const DType kept = matrix_type(weights);
  const std::int64_t tracks = shape_.tracks,
                     bytes = 2 * tracks * matrix_bytes(kept, shape_.ffn, shape_.hidden);
  const auto sets = static_cast<int>(static_cast<std::int64_t>(kArenaBytes) / bytes);
  Pieces pieces(arena_.get(), kArenaBytes);
  std::vector<TrackWeights> matrices;
  for (int i = 0; i < 2 * sets; ++i)
    matrices.push_back(pieces.matrices(kept, tracks, shape_.ffn, shape_.hidden));
  const double us = timer_.median_us(std::min(sets, rows <= 16 ? 12 : 4), [&](int i) {
    const auto at = static_cast<std::size_t>(2 * (i % sets));
    const Tensor x = activations(0, rows, shape_.hidden);
    backend_.gated_linear(FfnActivation::silu, {&matrices[at], x, activations(1, rows, shape_.ffn)},
                          {&matrices[at + 1], x, activations(2, rows, shape_.ffn)});
  });
  report(label("gate, up and SwiGLU", weights), rows, us,
         as_double(bytes + tracks * rows * (shape_.hidden + shape_.ffn) * 2),
         rows <= kMemoryBoundRows ? 0 : 4.0 * as_double(tracks * rows * shape_.hidden * shape_.ffn));
}

void CudaBench::products(std::int64_t rows, DType weights) {
  const std::int64_t d = shape_.hidden, q = shape_.q_width(), kv = shape_.kv_width(), ffn = shape_.ffn;
  linear({"q, k and v", d, {q, kv, kv}}, rows, weights);
  linear({"wo", q, {d}}, rows, weights);
  linear({"gate and up", d, {ffn, ffn}}, rows, weights);
  linear({"down", ffn, {d}}, rows, weights);
  if (rows <= kSequences) linear({"head", d, {shape_.vocab}, true, true}, rows, weights);
}

// Slot s has the pages [s · slot_pages, (s + 1) · slot_pages).
void CudaBench::set_step(const std::vector<std::int32_t>& positions, const std::vector<std::int32_t>& slots,
                         std::int64_t slot_pages) {
  page_table_.resize(static_cast<std::size_t>((slots.back() + 1) * slot_pages));
  std::iota(page_table_.begin(), page_table_.end(), 0);
  backend_.set_step_inputs(std::vector<std::int32_t>(positions.size(), 0),
                           {positions, slots, page_table_, slot_pages});
}

void CudaBench::decode_attention(std::int64_t batch, std::int64_t context, bool clusters) {
  const auto rows = static_cast<std::size_t>(batch);
  std::vector<std::int32_t> positions(rows, static_cast<std::int32_t>(context) - 1), slots(rows);
  std::iota(slots.begin(), slots.end(), 0);
  const std::int64_t pages = context / kPageTokens;
  set_step(positions, slots, pages);
  KvPool pool{arena_.get(), type_, shape_.tracks, 1, batch * pages, shape_.kv_heads, shape_.head_dim};
  const double bytes = static_cast<double>(pool.bytes());
  pool.layers = std::clamp<std::int64_t>(static_cast<std::int64_t>(kArenaBytes / pool.bytes()), 1, 64);
  const Tensor q = activations(0, batch, shape_.q_width()), out = activations(1, batch, shape_.q_width());
  const StepRows step{positions, slots, page_table_, pages};
  use_clusters(clusters);
  const double us = timer_.median_us(static_cast<int>(std::min<std::int64_t>(pool.layers, 12)), [&](int i) {
    backend_.attention(shape_.attention(), q, step, i % pool.layers, pool, out);
  });
  use_clusters(true);
  report(label(fmt::format("decode attention over {}{}", context, clusters ? "" : ", no clusters")), batch,
         us, bytes, 0);
}

void CudaBench::prefill_attention(std::int64_t rows, std::int64_t past) {
  const auto count = static_cast<std::size_t>(rows);
  std::vector<std::int32_t> positions(count), slots(count, 0);
  std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(past));
  const std::int64_t pages = (rows + past) / kPageTokens;
  set_step(positions, slots, pages);
  const KvPool pool{arena_.get(), type_, shape_.tracks, 1, pages, shape_.kv_heads, shape_.head_dim};
  const Tensor q = activations(0, rows, shape_.q_width()), out = activations(1, rows, shape_.q_width());
  const StepRows step{positions, slots, page_table_, pages};
  const double us =
      timer_.median_us(4, [&](int) { backend_.attention(shape_.attention(), q, step, 0, pool, out); });
  const double seen = as_double(rows) * (as_double(past) + as_double(rows + 1) / 2);
  report(label(fmt::format("prefill attention, {} before", past)), rows, us,
         static_cast<double>(pool.bytes()), 4.0 * as_double(shape_.tracks * shape_.q_width()) * seen);
}

// The ops between the products, each over all rows.
void CudaBench::row_ops(std::int64_t rows) {
  const auto n = static_cast<std::size_t>(rows);
  const std::int64_t d = shape_.hidden, q = shape_.q_width(), kv = shape_.kv_width();
  const double all_rows = as_double(shape_.tracks * rows);
  const int launches = rows > 256 ? 4 : 32;
  const TrackWeights norm(static_cast<std::size_t>(shape_.tracks),
                          Weight{streams_.get(), DType::float32, 1, 1, d});
  const double norm_us = timer_.median_us(launches, [&](int) {
    backend_.add_rms_norm(activations(0, rows, d), fp32_rows(1, rows, d), norm, 1e-5f,
                          activations(1, rows, d));
  });
  report(label("add and norm"), rows, norm_us, all_rows * as_double(d) * (2 + 4 + 4 + 2), 0);
  // It works in place, again and again: up is such that gates neither vanish nor overflow.
  PTRT_CUDA_CHECK(cudaMemsetAsync(activations(3, rows, shape_.ffn).data, 0x40,
                                  static_cast<std::size_t>(shape_.tracks * rows * shape_.ffn) * 2,
                                  backend_.stream()));
  const double swiglu_us = timer_.median_us(launches, [&](int) {
    backend_.glu(FfnActivation::silu, activations(2, rows, shape_.ffn), activations(3, rows, shape_.ffn));
  });
  report(label("swiglu"), rows, swiglu_us, all_rows * as_double(shape_.ffn) * 3 * 2, 0);

  std::vector<std::int32_t> positions(n), slots(n, 0);
  std::iota(positions.begin(), positions.end(), 0);
  const std::int64_t pages = (rows + kPageTokens - 1) / kPageTokens;
  set_step(positions, slots, pages);
  const KvPool pool{arena_.get(), type_, shape_.tracks, 1, pages, shape_.kv_heads, shape_.head_dim};
  const Tensor angles{streams_.get(), 1, rows, shape_.head_dim, rows * shape_.head_dim, DType::float32};
  const double rope_us = timer_.median_us(launches, [&](int) {
    backend_.rope_append(shape_.attention(), {}, {}, angles, activations(0, rows, q),
                         activations(1, rows, kv), activations(2, rows, kv),
                         {positions, slots, page_table_, pages}, 0, pool);
  });
  report(label("rope and append"), rows, rope_us,
         all_rows * 2 * 2 * as_double(q + 2 * kv) + as_double(rows * shape_.head_dim * 4), 0);
  fill_activations();  // rotated and multiplied many times
  fill_arena();
}

void CudaBench::layer(std::int64_t rows, std::int64_t context, DType weights, bool fp32_out) {
  for (const auto& [parts, name] : {std::pair{LayerParts::gemms, "layer, products alone"},
                                    {LayerParts::with_norms, "layer, products and norms"},
                                    {LayerParts::whole, "layer"}}) {
    const LayerTime time = measure_layer(backend_, timer_, arena_.get(), kArenaBytes, shape_,
                                         {rows, context, parts, matrix_type(weights), fp32_out});
    const char* output = fp32_out ? ", float32 output" : "";
    report(label(fmt::format("{} over {}{}", name, context, output), weights), rows, time.us, time.bytes, 0);
  }
  fill_arena();
}

// By the host's clock: sample() waits for its results.
void CudaBench::sampling(std::int64_t rows, const char* name, const SampleParams& params) {
  const Tensor logits{logits_.get(), 1, rows, shape_.vocab, rows * shape_.vocab, DType::float32};
  const std::vector<SampleParams> all(static_cast<std::size_t>(rows), params);
  std::vector<Sampled> sampled(all.size());
  std::vector<double> times;
  for (int i = 0; i < 12; i++) {
    const auto start = std::chrono::steady_clock::now();
    backend_.sample(logits, all, sampled);
    times.push_back(
        std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
  }
  std::ranges::sort(times);
  report(label(name), rows, times[times.size() / 2], as_double(rows * shape_.vocab) * sizeof(float), 0);
}

}  // namespace ptrt
