#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/cuda/base/cuda_check.h"
#include "kernels/cuda/host/weight_layout.h"
#include "kernels/cuda/ops/block_edges.h"
#include "kernels/cuda/ops/elementwise.h"
#include "kernels/cuda/ops/norm.h"
#include "kernels/cuda/ops/rope.h"
#include "kernels/cuda/plugin.h"

namespace ptrt {
namespace {

static_assert(kCudaMaxHeadDim == cuda::kMaxHeadDim && kCudaMaxTracks == cuda::kMaxTreeParts);

void check_weights(const TrackWeights& weights, std::int64_t tracks, DType dtype, std::int64_t out,
                   std::int64_t in) {
  PTRT_CHECK(static_cast<std::int64_t>(weights.size()) == tracks);
  for (const Weight& w : weights) PTRT_CHECK(w.dtype == dtype && w.out == out && w.in == in);
}

void check_fp32(const Tensor& x) {
  PTRT_CHECK(x.dtype == DType::float32);
}
// x has the shape of `out`, or has one track for all of them.
void check_like(const Tensor& x, const Tensor& out) {
  PTRT_CHECK(x.rows == out.rows && x.width == out.width && (x.tracks == out.tracks || x.tracks == 1));
}

}  // namespace

CudaBackend::Scratch::Scratch(const WorkLimits& work_limits, const Stream& stream)
    : limits(work_limits),
      step(work_limits, stream),
      decode_attention(work_limits, stream),
      moe(work_limits),
      sampler(work_limits, stream) {}

CudaBackend::CudaBackend(const std::string& device_name, bool graphs, DType activation_dtype)
    : device_name_(device_name),
      graphs_(graphs),
      activation_dtype_(activation_dtype),
      traits_{.name = "cuda",
              .activation_dtype = activation_dtype,
              .records_steps = graphs,
              .attends_to_row_subsets = false,
              .steps_ahead = 1},
      clock_(stream_),
      groups_(stream_, clock_),
      loader_(stream_, activation_dtype) {
  PTRT_CHECK(activation_dtype == DType::bfloat16 || activation_dtype == DType::float16);
}

void CudaBackend::check_matrices(const TrackWeights& weights, std::int64_t tracks, std::int64_t out,
                                 std::int64_t in) const {
  PTRT_CHECK(static_cast<std::int64_t>(weights.size()) == tracks);
  for (const Weight& w : weights) {
    PTRT_CHECK(w.out == out && w.in == in);
    PTRT_CHECK(w.dtype == activation_dtype_ || (cuda::is_8bit(w.dtype) && w.scales != nullptr));
  }
}
void CudaBackend::check_activation(const Tensor& x) const {
  PTRT_CHECK(x.dtype == activation_dtype_);
}
void CudaBackend::check_activation_or_fp32(const Tensor& x) const {
  PTRT_CHECK(x.dtype == DType::float32 || x.dtype == activation_dtype_);
}

CudaBackend::Scratch& CudaBackend::scratch() {
  PTRT_CHECK(scratch_ != nullptr);
  return *scratch_;
}

std::shared_ptr<std::byte[]> CudaBackend::allocate(std::size_t bytes, const std::string& what) {
  DevicePointer<std::byte> memory = allocate_device(std::max<std::size_t>(bytes, 1), what);
  PTRT_CUDA_CHECK(cudaMemsetAsync(memory.get(), 0, bytes, stream_.get()));
  return memory;
}

std::optional<std::size_t> CudaBackend::free_bytes() const {
  return device_bytes().free;
}

Weight CudaBackend::load_weight(const WeightSpec& spec, WeightSource& source) {
  const Weight weight = loader_.load(spec, source);
  if (cuda::is_8bit(weight.dtype)) products_.reserve_for_8bit();
  return weight;
}

void CudaBackend::reserve(const WorkLimits& limits) {
  if (limits.head_dim > cuda::kMaxHeadDim)
    throw_bad_input("head_dim {}: the CUDA backend's attention takes up to {}, use --backend cpu",
                    limits.head_dim, cuda::kMaxHeadDim);
  scratch_ = std::make_unique<Scratch>(limits, stream_);
}

void CudaBackend::set_step_inputs(std::span<const std::int32_t> tokens, const StepRows& rows) {
  clock_.mark_step_start();
  scratch().step.set(tokens, rows);
}

// Besides `key`, launches depend only on the context that decode attention is sized for.
bool CudaBackend::run_recorded(std::int64_t key, const std::function<void()>& ops) {
  if (!graphs_) {
    ops();
    return true;
  }
  Scratch& s = scratch();
  PTRT_CHECK(s.step.prefill_chunk_count() == 0);
  return s.graphs.run({key, s.decode_attention.context_of(s.step)}, stream_, clock_, ops);
}

// Does not wait: a replay in flight, perhaps waiting for a lost peer, keeps its resources.
void CudaBackend::drop_recorded() noexcept {
  if (scratch_) scratch_->graphs.clear();
}

std::optional<ReplayTimes> CudaBackend::take_replay_times() {
  if (!graphs_) return std::nullopt;
  return clock_.take_times();
}

void CudaBackend::write(std::span<const std::byte> from, std::byte* to) {
  PTRT_CUDA_CHECK(cudaMemcpyAsync(to, from.data(), from.size(), cudaMemcpyHostToDevice, stream_.get()));
  stream_.wait();
}

void CudaBackend::read_back(const std::byte* from, std::span<std::byte> to) {
  PTRT_CUDA_CHECK(cudaMemcpyAsync(to.data(), from, to.size(), cudaMemcpyDeviceToHost, stream_.get()));
  stream_.wait();
}

void CudaBackend::embed(const Weight& table, std::span<const std::int32_t> tokens, float scale, Tensor x) {
  PTRT_CHECK(x.rows == scratch().step.rows() && x.width == table.in);
  check_fp32(x);
  const cuda::Sampler& sampler = scratch().sampler;
  for (const std::int32_t token : tokens)
    if (token >= table.out || token_of_sample(token) >= sampler.rows())
      throw_failure("token {} is outside the vocabulary of {}", token, table.out);
  cuda::embed(table, scratch().step.view().tokens, sampler.sampled(), scale, x, stream_.get());
}

void CudaBackend::rms_norm(const TrackWeights& weights, NormRule rule, Tensor x, Tensor out) {
  check_weights(weights, out.tracks, DType::float32, 1, x.width);
  check_like(x, out);
  PTRT_CHECK(x.dtype == DType::float32 || (x.dtype == activation_dtype_ && out.dtype == activation_dtype_));
  check_activation_or_fp32(out);
  cuda::rms_norm(weights, rule, x, out, stream_.get());
}

void CudaBackend::add_rms_norm(Tensor a, Tensor h, const TrackWeights& weights, NormRule rule, Tensor out) {
  check_weights(weights, out.tracks, DType::float32, 1, h.width);
  check_like(a, h);
  check_like(h, out);
  check_fp32(h);
  for (const Tensor& x : {a, out}) check_activation_or_fp32(x);
  cuda::add_rms_norm(a, h, weights, rule, out, stream_.get());
}

void CudaBackend::linear(std::span<const LinearJob> jobs) {
  for (const LinearJob& job : jobs) {
    check_matrices(*job.weights, job.y.tracks, job.y.width, job.x.width);
    check_activation(job.x);
    check_activation_or_fp32(job.y);
    if (job.bias != nullptr) check_weights(*job.bias, job.y.tracks, DType::float32, 1, job.y.width);
    PTRT_CHECK(job.x.rows == job.y.rows && (job.x.tracks == job.y.tracks || job.x.tracks == 1));
    PTRT_CHECK(job.x.rows == jobs[0].x.rows && job.y.tracks == jobs[0].y.tracks);
  }
  products_.linear(jobs, stream_.get());
}

void CudaBackend::gated_linear(FfnActivation activation, const LinearJob& gate, const LinearJob& up) {
  for (const LinearJob* job : {&gate, &up}) {
    check_matrices(*job->weights, job->y.tracks, job->y.width, job->x.width);
    check_activation(job->x);
    check_activation(job->y);
    PTRT_CHECK(job->bias == nullptr && job->x.rows == job->y.rows &&
               (job->x.tracks == job->y.tracks || job->x.tracks == 1));
  }
  PTRT_CHECK(gate.x.data == up.x.data && gate.x.track_stride == up.x.track_stride);
  check_like(gate.y, up.y);
  if (!products_.gated_linear(activation, gate, up, stream_.get()))
    Backend::gated_linear(activation, gate, up);
}

void CudaBackend::add(Tensor a, Tensor h) {
  check_like(a, h);
  check_fp32(h);
  check_activation_or_fp32(a);
  cuda::add(a, h, stream_.get());
}

void CudaBackend::copy(Tensor x, Tensor out) {
  check_like(x, out);
  check_fp32(x);
  check_activation_or_fp32(out);
  cuda::copy(x, out, stream_.get());
}

void CudaBackend::join_columns(const float* parts, std::int64_t stride, std::int64_t width, Tensor out) {
  PTRT_CHECK(out.dtype == DType::float32 && width > 0 && out.tracks == 1);
  if (out.rows > 0) cuda::join_columns(parts, stride, width, out, stream_.get());
}

void CudaBackend::gather_rows(Tensor x, std::span<const std::int32_t> rows, Tensor out) {
  check_fp32(x);
  check_fp32(out);
  PTRT_CHECK(static_cast<std::int64_t>(rows.size()) == out.rows && x.width == out.width);
  for (const std::int32_t row : rows) PTRT_CHECK(row >= 0 && row < x.rows);
  cuda::gather_rows(x, rows, out, stream_.get());
}

void CudaBackend::glu(FfnActivation activation, Tensor gate, Tensor up) {
  for (const Tensor& x : {gate, up}) check_activation(x);
  cuda::glu(activation, gate, up, stream_.get());
}

void CudaBackend::moe_ffn(const MoeJob& job) {
  const MoeShape& shape = job.shape;
  const std::int64_t tracks = job.y.tracks, slots = job.x.rows * shape.top_k, d = job.x.width;
  const WorkLimits& limits = scratch().limits;
  PTRT_CHECK(tracks <= limits.tracks && job.x.rows <= limits.rows && shape.top_k <= limits.top_k &&
             shape.experts <= limits.experts);
  PTRT_CHECK(shape.top_k >= 1 && shape.top_k <= shape.experts);
  PTRT_CHECK(job.gate_out.rows == slots && job.up_out.rows == slots && job.expert_out.rows == slots);
  PTRT_CHECK(job.router_logits.rows == job.x.rows && job.router_logits.width == shape.experts);
  check_fp32(job.router_logits);
  check_activation_or_fp32(job.y);
  for (const Tensor& x : {job.x, job.gate_out, job.up_out, job.expert_out}) check_activation(x);
  check_weights(*job.router, tracks, DType::float32, shape.experts, d);
  check_matrices(*job.gate, tracks, shape.ffn_size, d);
  check_matrices(*job.up, tracks, shape.ffn_size, d);
  check_matrices(*job.down, tracks, d, shape.ffn_size);
  scratch().moe.run(job, stream_.get());
}

void CudaBackend::rope_angles(std::span<const std::int32_t> positions, const RopeFrequencies& rope,
                              Tensor cos_sin) {
  PTRT_CHECK(std::ssize(rope.frequencies) == cos_sin.width / 2 && cos_sin.width <= cuda::kMaxHeadDim);
  PTRT_CHECK(static_cast<std::int64_t>(positions.size()) == scratch().step.rows() &&
             cos_sin.rows == scratch().step.rows());
  check_fp32(cos_sin);
  cuda::rope_angles(scratch().step.view().positions, rope, cos_sin, stream_.get());
}

void CudaBackend::rope_append(const AttentionShape& shape, const TrackWeights& q_norm,
                              const TrackWeights& k_norm, Tensor cos_sin, Tensor q, Tensor k, Tensor v,
                              const StepRows&, std::int64_t layer, const KvPool& pool) {
  PTRT_CHECK(q.rows == scratch().step.rows() && k.rows == q.rows && v.rows == q.rows);
  PTRT_CHECK(q.width == shape.heads * shape.head_dim && k.width == shape.kv_heads * shape.head_dim);
  PTRT_CHECK(v.width == k.width && v.track_stride == k.track_stride && pool.dtype == activation_dtype_);
  PTRT_CHECK(shape.head_dim <= cuda::kMaxHeadDim && (!shape.rope || shape.head_dim % 2 == 0));
  for (const Tensor& x : {q, k, v}) check_activation(x);
  if (!q_norm.empty()) check_weights(q_norm, q.tracks, DType::float32, 1, shape.head_dim);
  if (!k_norm.empty()) check_weights(k_norm, q.tracks, DType::float32, 1, shape.head_dim);
  cuda::rope_append(shape, q_norm, k_norm, cos_sin, q, k, v, scratch().step.view(), layer, pool,
                    stream_.get());
}

void CudaBackend::attention(const AttentionShape& shape, Tensor q, const StepRows&, std::int64_t layer,
                            const KvPool& pool, Tensor out) {
  const Scratch& s = scratch();
  PTRT_CHECK(q.rows == s.step.rows() && out.rows == q.rows && out.width == q.width);
  PTRT_CHECK(q.tracks <= s.limits.tracks && shape.heads <= s.limits.heads &&
             shape.head_dim <= s.limits.head_dim && pool.dtype == activation_dtype_);
  PTRT_CHECK(s.step.longest_decode_context() <= s.limits.context);
  for (const Tensor& x : {q, out}) check_activation(x);
  const cuda::AttentionJob job{shape, q, out, layer, pool, stream_.get()};
  s.decode_attention.run(job, s.step);
  cuda::prefill_attention(job, s.step);
}

void CudaBackend::subtract(Tensor x, Tensor y) {
  check_like(x, y);
  check_fp32(x);
  check_fp32(y);
  cuda::subtract(x, y, stream_.get());
}

void CudaBackend::end_block(const BlockEnd& end) {
  if (!cuda::fits_one_launch(end)) return Backend::end_block(end);
  for (const TrackWeights* norm : {end.post_norm, end.combine_norm})
    if (norm != nullptr) check_weights(*norm, end.h.tracks, DType::float32, 1, end.h.width);
  for (const Tensor& x : {end.h, end.y}) check_fp32(x);
  check_like(end.a, end.h);
  check_like(end.h, end.y);
  PTRT_CHECK(end.a.tracks == end.h.tracks);
  check_activation_or_fp32(end.a);
  if (end.minus.data != nullptr) check_like(end.minus, end.y);
  cuda::end_block(end, stream_.get());
}

void CudaBackend::begin_block(const BlockBegin& begin) {
  if (!cuda::fits_one_launch(begin)) return Backend::begin_block(begin);
  for (const TrackWeights* norm : {begin.dispatch_norm, begin.pre_norm})
    if (norm != nullptr) check_weights(*norm, begin.h.tracks, DType::float32, 1, begin.h.width);
  for (const Tensor& x : {begin.x, begin.h}) check_fp32(x);
  check_like(begin.x, begin.h);
  if (begin.pre_norm != nullptr) {
    check_activation(begin.normed);
    check_like(begin.h, begin.normed);
  }
  cuda::begin_block(begin, stream_.get());
}

void CudaBackend::tree_sum(std::span<const float* const> parts, std::int64_t count, float scale,
                           const float* add_to, float* out) {
  PTRT_CHECK(!parts.empty());
  if (parts.size() > cuda::kMaxTreeParts)
    throw_failure("the CUDA backend adds up to {} tracks, found {}", cuda::kMaxTreeParts, parts.size());
  cuda::tree_sum(parts, count, scale, add_to, out, stream_.get());
}

void CudaBackend::sample(Tensor logits, std::span<const SampleParams> params, std::span<Sampled> out) {
  PTRT_CHECK(out.size() == params.size() && scratch().sampler.in_flight() == 0);
  queue_sample(logits, params, {});
  take_sampled(out, {});
}

void CudaBackend::check_logits(const Tensor& logits, std::size_t rows) {
  PTRT_CHECK(static_cast<std::int64_t>(rows) == logits.rows && logits.rows <= scratch().limits.logit_rows);
  check_fp32(logits);
}

void CudaBackend::check_edits(const Tensor& logits, const LogitEdits* edits) {
  if (edits == nullptr) return;
  PTRT_CHECK(logits.width <= scratch().limits.vocab && std::ssize(edits->tokens) <= logits.width);
  PTRT_CHECK(edits->allowed.empty() || std::ssize(edits->allowed) == mask_words(logits.width));
}

void CudaBackend::check_counts(const Tensor& logits, std::span<const std::int32_t> counts) {
  PTRT_CHECK(static_cast<std::int64_t>(counts.size()) == logits.rows);
  for (const std::int32_t count : counts)
    PTRT_CHECK(count >= 0 && count <= std::min(kMaxTopLogprobs, logits.width));
}

void CudaBackend::queue_sample(Tensor logits, std::span<const SampleParams> params,
                               std::span<const std::int32_t> top_counts) {
  check_logits(logits, params.size());
  for (const SampleParams& p : params) check_edits(logits, p.edits);
  if (!top_counts.empty()) check_counts(logits, top_counts);
  PTRT_CHECK(scratch().sampler.in_flight() < cuda::Sampler::kMaxInFlight);
  scratch().sampler.queue(logits, params, top_counts);
  clock_.mark_step_end();
}

void CudaBackend::take_sampled(std::span<Sampled> out, std::span<TopLogprobs> top) {
  PTRT_CHECK(scratch().sampler.in_flight() > 0);
  scratch().sampler.take(out, top);
}

void CudaBackend::log_probs(Tensor logits, std::span<const std::int32_t> targets, std::span<Scored> out) {
  check_logits(logits, targets.size());
  PTRT_CHECK(out.size() == targets.size() && scratch().sampler.in_flight() == 0);
  for (const std::int32_t target : targets) PTRT_CHECK(target >= 0 && target < logits.width);
  scratch().sampler.log_probs(logits, targets, out);
}

void CudaBackend::top_log_probs(Tensor logits, std::span<const std::int32_t> counts,
                                std::span<TopLogprobs> out) {
  check_logits(logits, counts.size());
  check_counts(logits, counts);
  PTRT_CHECK(out.size() == counts.size() && scratch().sampler.in_flight() == 0);
  scratch().sampler.top_log_probs(logits, counts, out);
}

}  // namespace ptrt
