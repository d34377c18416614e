#include "kernels/cpu/cpu_backend.h"

#include <limits>

#include "kernels/base/error.h"
#include "kernels/cpu/ops/elementwise.h"
#include "kernels/cpu/ops/norm.h"
#include "kernels/cpu/ops/rope.h"
#include "kernels/cpu/simd/simd_target.h"

namespace ptrt {

CpuBackend::CpuBackend(const CpuOptions& options)
    : options_(options),
      traits_{.name = "cpu", .threads = options.threads, .track_lanes = options.threads},
      pool_(options.threads, options.worker_cores, options.oversubscribed),
      loader_(options, pool_),
      matmul_(pool_, options.compute),
      attention_(pool_, options.compute),
      moe_(pool_, matmul_),
      sampler_(pool_) {
  if (options.threads == 1) return;
  CpuOptions lane = options;
  lane.threads = 1;
  lane.worker_cores.clear();
  for (int worker = 0; worker < options.threads; ++worker)
    lanes_.push_back(std::make_unique<CpuBackend>(lane));
}

std::string CpuBackend::instruction_set() const {
  // The bits of bfloat16 products depend on the instruction; those of int8 products do not, but
  // attention and a tied head may take bfloat16 among them.
  const bool pairs = options_.compute != Compute::float32 && simd_target_has_bfloat16();
  return pairs ? simd_target() + "+BF16" : simd_target();
}

std::shared_ptr<std::byte[]> CpuBackend::allocate(std::size_t bytes, const std::string& what) {
  return allocate_zeroed(bytes, what);
}

Weight CpuBackend::load_weight(const WeightSpec& spec, WeightSource& source) {
  return load_weights(std::vector<WeightLoad>{{spec, &source}})[0];
}

std::vector<Weight> CpuBackend::load_weights(std::span<const WeightLoad> loads) {
  return loader_.load(loads);
}

void CpuBackend::parallel_over_tracks(std::int64_t tracks,
                                      const std::function<void(std::int64_t, Backend&)>& body) {
  pool_.parallel_for(tracks, [&](std::int64_t track, int worker) {
    body(track, lanes_.empty() ? *this : *lanes_[static_cast<std::size_t>(worker)]);
  });
}

void CpuBackend::embed(const Weight& table, std::span<const std::int32_t> tokens, float scale, Tensor x) {
  ptrt::embed(pool_, table, tokens, scale, x);
}

void CpuBackend::rms_norm(const TrackWeights& weights, NormRule rule, Tensor x, Tensor out) {
  ptrt::rms_norm(pool_, weights, rule, x, out);
}

void CpuBackend::linear(std::span<const LinearJob> jobs) {
  products_.clear();
  for (const LinearJob& job : jobs) {
    const TrackWeights& weights = *job.weights;
    PTRT_CHECK(static_cast<std::int64_t>(weights.size()) == job.y.tracks);
    PTRT_CHECK(job.x.rows == job.y.rows && (job.x.tracks == job.y.tracks || job.x.tracks == 1));
    for (std::int64_t t = 0; t < job.y.tracks; ++t) {
      const Weight& w = weights[static_cast<std::size_t>(t)];
      PTRT_CHECK(w.packed && w.count == 1 && w.in == job.x.width && w.out == job.y.width);
      products_.push_back({.layout = packed_layout(w),
                           .matrix = static_cast<const std::byte*>(w.data),
                           .rows = job.y.rows,
                           .x = job.x.row(job.x.tracks == 1 ? 0 : t, 0),
                           .x_height = job.x.rows,
                           .y = job.y.row(t, 0)});
    }
  }
  matmul_.run(products_);
  add_bias(pool_, jobs);
}

void CpuBackend::add(Tensor a, Tensor h) {
  ptrt::add(pool_, a, h);
}

void CpuBackend::copy(Tensor x, Tensor out) {
  ptrt::copy(pool_, x, out);
}

void CpuBackend::glu(FfnActivation activation, Tensor gate, Tensor up) {
  ptrt::glu(pool_, activation, gate, up);
}

void CpuBackend::moe_ffn(const MoeJob& job) {
  moe_.run(job);
}

void CpuBackend::rope_angles(std::span<const std::int32_t> positions, const RopeFrequencies& rope,
                             Tensor cos_sin) {
  ptrt::rope_angles(pool_, positions, rope, cos_sin);
}

void CpuBackend::rope_append(const AttentionShape& shape, const TrackWeights& q_norm,
                             const TrackWeights& k_norm, Tensor cos_sin, Tensor q, Tensor k, Tensor v,
                             const StepRows& rows, std::int64_t layer, const KvPool& pool) {
  ptrt::rope_append(pool_, shape, q_norm, k_norm, cos_sin, q, k, v, rows, layer, pool);
}

void CpuBackend::attention(const AttentionShape& shape, Tensor q, const StepRows& rows, std::int64_t layer,
                           const KvPool& pool, Tensor out) {
  attention_.run(shape, q, rows, layer, pool, out);
}

void CpuBackend::subtract(Tensor x, Tensor y) {
  ptrt::subtract(pool_, x, y);
}

void CpuBackend::tree_sum(std::span<const float* const> parts, std::int64_t count, float scale,
                          const float* add_to, float* out) {
  ptrt::tree_sum(pool_, parts, count, scale, add_to, out);
}

void CpuBackend::sample(Tensor logits, std::span<const SampleParams> params, std::span<Sampled> out) {
  sampler_.sample(logits, params, out);
}

void CpuBackend::log_probs(Tensor logits, std::span<const std::int32_t> targets, std::span<Scored> out) {
  sampler_.log_probs(logits, targets, out);
}

void CpuBackend::top_log_probs(Tensor logits, std::span<const std::int32_t> counts,
                               std::span<TopLogprobs> out) {
  sampler_.top_log_probs(logits, counts, out);
}

std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options) {
  return std::make_unique<CpuBackend>(options);
}

bool cpu_computes(Compute compute) {
  return compute == Compute::float32 || multiplies_natively(compute);
}

}  // namespace ptrt
