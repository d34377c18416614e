#include <algorithm>
#include <cstring>

#include "kernels/base/philox.h"
#include "kernels/cuda/ops/sampling.h"
#include "kernels/cuda/ops/vocab_parts.cuh"

// Several blocks, one per part of the vocabulary, reduce a row: the largest logit, the sum of
// exponentials, the probability mass, and the few tokens that top_k or top_p can keep. Then one
// block per row combines the parts in order and finishes the sampling. The division into parts
// depends only on the vocabulary, so that the results are batch-invariant.
namespace ptrt::cuda {
namespace {

static_assert(kBins == kCandidateBins);

__device__ __forceinline__ float inverse_of(float temperature) {
  return fminf(1.0f / temperature, FLT_MAX);
}

// Grid: x over parts, y over rows. Without `params` the sums of all rows are computed.
__global__ void __launch_bounds__(kThreads) part_stats_kernel(Parts parts, const SampleParams* params) {
  pdl_trigger_and_wait();
  __shared__ Shared shared;
  Row row = parts.row_within(blockIdx.y, static_cast<int>(blockIdx.x));
  VocabPart& mine = parts.of(blockIdx.y)[blockIdx.x];
  const Key best = argmax_key(row, shared);
  float sum = 0;
  if (params == nullptr || params[blockIdx.y].want_logprob) {
    row.max_logit = row.logits[Row::id_of(best)];
    sum = sum_exp(row, shared);
  }
  if (threadIdx.x == 0) mine.best = best, mine.sum = sum;
}

__device__ __forceinline__ bool cuts_at_top_k(const SampleParams& params, int vocab) {
  return params.top_k > 0 && params.top_k < vocab;
}
__device__ __forceinline__ bool cuts(const SampleParams& params, int vocab) {
  return cuts_at_top_k(params, vocab) || params.top_p < 1 || params.min_p > 0;
}
// The least logit that min_p keeps; compared in double, as on the CPU.
__device__ __forceinline__ float least_logit(const SampleParams& params, float max_logit) {
  const double exact = static_cast<double>(max_logit) +
                       log(static_cast<double>(params.min_p)) * static_cast<double>(params.temperature);
  const auto rounded = static_cast<float>(exact);
  const float up = static_cast<double>(rounded) < exact ? nextafterf(rounded, INFINITY) : rounded;
  return fmaxf(up, -FLT_MAX);
}
// The part of `mass` that top_p keeps at least.
__device__ __forceinline__ Mass top_p_target(float top_p, Mass mass) {
  const double enough = ceil(static_cast<double>(top_p) * static_cast<double>(mass));
  return min(max(enough > 0 ? static_cast<Mass>(enough) : Mass{1}, Mass{1}), mass);
}
__device__ __forceinline__ Mass mass_of_row(const VocabPart* parts, int count) {
  Mass mass = 0;
  for (int part = 0; part < count; ++part) mass += parts[part].mass;
  return mass;
}

// The same grid, after part_stats_kernel: the mass of the rows that are sampled; for those with
// top_k or top_p also a histogram of counts or masses by distance from the largest logit.
__global__ void __launch_bounds__(kThreads) part_mass_kernel(Parts parts, const SampleParams* params) {
  pdl_trigger_and_wait();
  __shared__ Shared shared;
  const SampleParams& mine = params[blockIdx.y];
  if (!(mine.temperature > 0)) return;
  const Key first = first_key(parts.of(blockIdx.y), parts.count);
  if (!Row::is_finite(first)) return;
  Row row = parts.row_within(blockIdx.y, static_cast<int>(blockIdx.x));
  row.max_logit = row.logits[Row::id_of(first)];
  row.inverse_temperature = inverse_of(mine.temperature);
  const Mass mass = sum_mass(row, 0, shared);
  if (threadIdx.x == 0) parts.of(blockIdx.y)[blockIdx.x].mass = mass;
  if (!cuts(mine, parts.vocab)) return;
  const bool count = cuts_at_top_k(mine, parts.vocab);
  clear_bins(shared);
  for (int base = row.begin; base < row.end; base += kThreads) {
    const int id = base + thread_id();
    const float logit = id < row.end ? row.logits[id] : row.max_logit;
    const Mass amount = count ? Mass{1} : row.mass_of(logit);
    add_to_bin(row.distance_bin(logit), id < row.end ? amount : Mass{0}, shared);
  }
  __syncthreads();
  Mass* bins = parts.candidates[blockIdx.y].bins;
  for (int i = thread_id(); i < kBins; i += kThreads)
    if (shared.bins[i] > 0) atomicAdd(&bins[i], shared.bins[i]);
}

// The same grid, after part_mass_kernel: collects the tokens of all bins up to the one in which the
// run for top_k (for top_p without top_k) ends, or the one of the least logit that min_p keeps. These include
// every token that is kept.
__global__ void __launch_bounds__(kThreads) candidates_kernel(Parts parts, const SampleParams* params) {
  pdl_trigger_and_wait();
  __shared__ Shared shared;
  const SampleParams& mine = params[blockIdx.y];
  if (!(mine.temperature > 0) || !cuts(mine, parts.vocab)) return;
  const VocabPart* of_row = parts.of(blockIdx.y);
  const Key first = first_key(of_row, parts.count);
  if (!Row::is_finite(first)) return;
  const Mass mass = mass_of_row(of_row, parts.count);
  Candidates& candidates = parts.candidates[blockIdx.y];
  for (int i = thread_id(); i < kBins; i += kThreads) shared.bins[i] = candidates.bins[i];
  __syncthreads();
  const bool count = cuts_at_top_k(mine, parts.vocab);
  find_bin(count ? static_cast<Mass>(mine.top_k) : top_p_target(mine.top_p, mass), shared);
  Row row = parts.row_within(blockIdx.y, static_cast<int>(blockIdx.x));
  row.max_logit = row.logits[Row::id_of(first)];
  int last_bin = shared.bin;
  // With top_k there must be top_k candidates.
  if (mine.min_p > 0 && !count) last_bin = min(last_bin, row.distance_bin(least_logit(mine, row.max_logit)));
  for (int base = row.begin; base < row.end; base += kThreads) {
    const int id = base + thread_id();
    const bool kept = id < row.end && row.distance_bin(row.logits[id]) <= last_bin;
    const unsigned all = __ballot_sync(kAllLanes, kept ? 1 : 0);
    if (all == 0) continue;
    const int lane = lane_id();
    int index = lane == 0 ? atomicAdd(&candidates.count, __popc(all)) : 0;
    index = __shfl_sync(kAllLanes, index, 0) + __popc(all & ((1u << lane) - 1));
    if (kept && index < kMaxCandidates) candidates.ids[index] = id;
  }
}

// The unit of mass that is drawn, from 1.
__device__ __forceinline__ Mass draw_target(const SampleParams& params, Mass mass) {
  const double u = uniform_draw(params.seed, params.position);
  return min(static_cast<Mass>(u * static_cast<double>(mass)) + 1, mass);
}

// The token with the `target`th unit of mass in ascending id order; searches only the part that
// contains it.
__device__ __forceinline__ int draw_by_id(const Parts& parts, Row row, Mass target, Shared& shared) {
  const VocabPart* of_row = parts.of(blockIdx.x);
  int part = 0;
  while (target > of_row[part].mass) target -= of_row[part++].mass;
  row.begin = part * parts.tokens;
  row.end = min(row.begin + parts.tokens, row.vocab);
  return Row::id_of(end_of_run<false>(row, 0, true, target, shared).key);
}

// Writes the tokens of one bin of distance_bin() to `ids`, at most `most` of them, in any order.
// Returns how many there are in total.
__device__ int gather_bin(const Row& row, int bin, int* ids, int most, Shared& shared) {
  constexpr int kUnroll = 8;  // loads in flight
  if (threadIdx.x == 0) shared.count = 0;
  __syncthreads();
  const int lane = lane_id();
  for (int base = row.begin; base < row.end; base += kThreads * kUnroll) {
    float logit[kUnroll];
#pragma unroll
    for (int j = 0; j < kUnroll; ++j)
      if (const int id = base + j * kThreads + thread_id(); id < row.end) logit[j] = row.logits[id];
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) {
      const int id = base + j * kThreads + thread_id();
      const bool mine = id < row.end && row.distance_bin(logit[j]) == bin;
      const unsigned all = __ballot_sync(kAllLanes, mine ? 1 : 0);
      if (all == 0) continue;
      int index = lane == 0 ? atomicAdd(&shared.count, __popc(all)) : 0;
      index = __shfl_sync(kAllLanes, index, 0) + __popc(all & ((1u << lane) - 1));
      if (mine && index < most) ids[index] = id;
    }
  }
  __syncthreads();
  return shared.count;
}

// Like end_of_run() for masses over the whole row, whose histogram is known: examines only the
// tokens of the bin in which the run ends.
__device__ RunEnd end_in_bin(Candidates& candidates, const Row& row, Mass target, Shared& shared) {
  for (int i = thread_id(); i < kBins; i += kThreads) shared.bins[i] = candidates.bins[i];
  __syncthreads();
  find_bin(target, shared);
  const Mass before = shared.before;
  const int count = gather_bin(row, shared.bin, candidates.ids, kMaxCandidates, shared);
  Row in_bin = row;
  Mass skipped = 0;
  if (count <= kMaxCandidates) {
    in_bin.list = candidates.ids;
    in_bin.end = count;
    skipped = before;
  }
  RunEnd end = end_of_run<false>(in_bin, 0, false, target - skipped, shared);
  end.up_to += skipped;
  return end;
}

// Searches only the candidates instead of the whole row, if they are complete.
__device__ __forceinline__ int draw_from_largest(const Parts& parts, Row row, const SampleParams& params,
                                                 Mass mass, Shared& shared) {
  Candidates& candidates = parts.candidates[blockIdx.x];
  if (candidates.count > kMaxCandidates && !cuts_at_top_k(params, row.vocab) && !(params.min_p > 0)) {
    RunEnd end{};
#pragma unroll 1
    for (int draws = 0; draws < 2; ++draws) {
      const Mass target = draws == 0 ? top_p_target(params.top_p, mass) : draw_target(params, end.up_to);
      end = end_in_bin(candidates, row, target, shared);
    }
    return Row::id_of(end.key);
  }
  if (candidates.count <= kMaxCandidates) {
    row.list = candidates.ids;
    row.end = candidates.count;
  }
  Key cut = 0;
  if (cuts_at_top_k(params, row.vocab)) {
    cut = end_of_run<true>(row, 0, false, static_cast<Mass>(params.top_k), shared).key;
  }
  if (params.min_p > 0) cut = max(cut, row.least_key(least_logit(params, row.max_logit)));
  if (cut > 0) mass = sum_mass(row, cut, shared);
  if (params.top_p < 1) {
    const RunEnd kept = end_of_run<false>(row, cut, false, top_p_target(params.top_p, mass), shared);
    cut = kept.key;
    mass = kept.up_to;
  }
  return Row::id_of(end_of_run<false>(row, cut, false, draw_target(params, mass), shared).key);
}

__device__ __forceinline__ int draw(const Parts& parts, const Row& row, const SampleParams& params,
                                    Shared& shared) {
  const Mass mass = mass_of_row(parts.of(blockIdx.x), parts.count);
  if (cuts(params, row.vocab)) return draw_from_largest(parts, row, params, mass, shared);
  return draw_by_id(parts, row, draw_target(params, mass), shared);
}

// One block per row, after the kernels over parts.
__global__ void __launch_bounds__(kThreads)
    sample_kernel(Parts parts, const SampleParams* params, Sampled* out) {
  pdl_trigger_and_wait();
  __shared__ Shared shared;
  const SampleParams& mine = params[blockIdx.x];
  const VocabPart* of_row = parts.of(blockIdx.x);
  Row row = parts.row(blockIdx.x);
  const Key first = first_key(of_row, parts.count);
  if (!Row::is_finite(first)) {
    if (threadIdx.x == 0) out[blockIdx.x] = {0, NAN};  // Sampled::not_finite()
    return;
  }
  int token = Row::id_of(first);
  row.max_logit = row.logits[token];
  if (mine.temperature > 0) {
    row.inverse_temperature = inverse_of(mine.temperature);
    token = draw(parts, row, mine, shared);
  }
  if (threadIdx.x != 0) return;
  out[blockIdx.x] = {token, mine.want_logprob ? log_prob(row, token, of_row, parts.count) : 0.0f};
}

// One thread per row: the likeliest token, and the log-probability of the target.
__global__ void __launch_bounds__(kWarpSize)
    log_probs_kernel(Parts parts, int rows, const std::int32_t* targets, Sampled* out) {
  pdl_trigger_and_wait();
  const unsigned number = blockIdx.x * kWarpSize + threadIdx.x;
  if (number >= static_cast<unsigned>(rows)) return;
  const VocabPart* of_row = parts.of(number);
  Row row = parts.row(number);
  const Key first = first_key(of_row, parts.count);
  row.max_logit = row.logits[Row::id_of(first)];
  out[number] = {Row::id_of(first),
                 Row::is_finite(first) ? log_prob(row, targets[number], of_row, parts.count) : NAN};
}

}  // namespace

Sampler::Sampler(const WorkLimits& limits, const Stream& stream)
    : stream_(stream), max_rows_(limits.logit_rows), edited_(limits, stream) {
  constexpr const char* kWhat = "sampling";
  const auto rows = static_cast<std::size_t>(max_rows_);
  params_ = allocate_device_array<SampleParams>(rows, kWhat);
  targets_ = allocate_device_array<std::int32_t>(rows, kWhat);
  sampled_ = allocate_device_array<Sampled>(rows, kWhat);
  top_ = allocate_device_array<TopLogprobs>(rows, kWhat);
  parts_ = allocate_device_array<VocabPart>(rows * kMaxVocabParts, kWhat);
  candidates_ = allocate_device_array<Candidates>(rows, kWhat);
  for (Call& call : calls_) {
    call.params = allocate_pinned(rows * sizeof(SampleParams), kWhat);
    call.targets = allocate_pinned(rows * sizeof(std::int32_t), kWhat);
    call.sampled = allocate_pinned(rows * sizeof(Sampled), kWhat);
    call.top = allocate_pinned(rows * sizeof(TopLogprobs), kWhat);
  }
}

template <typename T>
void Sampler::upload(std::span<const T> values, std::byte* pinned, T* device) {
  std::memcpy(pinned, values.data(), values.size_bytes());
  PTRT_CUDA_CHECK(
      cudaMemcpyAsync(device, pinned, values.size_bytes(), cudaMemcpyHostToDevice, stream_.get()));
}

template <typename T>
void Sampler::download(const T* device, std::size_t count, std::byte* pinned) {
  PTRT_CUDA_CHECK(cudaMemcpyAsync(pinned, device, count * sizeof(T), cudaMemcpyDeviceToHost, stream_.get()));
}

// The preceding call may still use the device buffers, but in the same stream: this call's uploads
// and results come after it.
void Sampler::queue(const Tensor& logits, std::span<const SampleParams> params,
                    std::span<const std::int32_t> top_counts) {
  Call& mine = call(queued_++);
  rows_ = static_cast<std::int64_t>(params.size());
  // A row with edits is drawn below: here it is only looked at.
  std::vector<SampleParams>& plain = mine.plain;
  plain.assign(params.begin(), params.end());
  bool edits = false;
  for (SampleParams& p : plain)
    if (p.edits != nullptr) edits = true, p.temperature = 0;
  upload(std::span<const SampleParams>(plain), mine.params.get(), params_.get());
  choose(logits, -FLT_MAX, parts_.get(), plain, params_.get(), sampled_.get());
  if (edits) choose_edited(logits, params, mine.edits);
  if (!top_counts.empty()) {
    upload(top_counts, mine.targets.get(), targets_.get());
    fill_top_logprobs(logits, parts_.get(), targets_.get(), top_.get(), stream_);
    download(top_.get(), top_counts.size(), mine.top.get());
  }
  download(sampled_.get(), params.size(), mine.sampled.get());
  mine.done.record(stream_);
}

void Sampler::choose_edited(const Tensor& logits, std::span<const SampleParams> params, StagedEdits& staged) {
  edited_.stage(logits.width, params, staged);
  for (const StagedEdits::Group& group : staged.groups) {
    const EditedBatch batch = edited_.write(logits, staged, group);
    choose(batch.logits, -INFINITY, batch.parts, batch.params, batch.params_on_device, batch.sampled);
    edited_.finish(logits, parts_.get(), group, params_.get(), sampled_.get());
  }
}

// A token for each row, of its logits as they are. `least`: as in Parts; `on_device`: the params there.
void Sampler::choose(const Tensor& logits, float least, VocabPart* memory,
                     std::span<const SampleParams> params, const SampleParams* on_device, Sampled* out) {
  const Parts parts = parts_of(logits, memory, candidates_.get(), least);
  launch(shape_of_parts("vocabulary_parts", parts, params.size(), stream_), part_stats_kernel, parts,
         on_device);
  if (std::ranges::any_of(params, [](const SampleParams& p) { return p.temperature > 0; })) {
    const bool cut = std::ranges::any_of(
        params, [](const SampleParams& p) { return p.top_k > 0 || p.top_p < 1 || p.min_p > 0; });
    if (cut)
      PTRT_CUDA_CHECK(
          cudaMemsetAsync(candidates_.get(), 0, params.size() * sizeof(Candidates), stream_.get()));
    launch(shape_of_parts("vocabulary_masses", parts, params.size(), stream_), part_mass_kernel, parts,
           on_device);
    if (cut)
      launch(shape_of_parts("candidates", parts, params.size(), stream_), candidates_kernel, parts,
             on_device);
  }
  launch({"sample", dim3(static_cast<unsigned>(params.size())), dim3(kThreads), stream_.get()}, sample_kernel,
         parts, on_device, out);
}

void Sampler::take(std::span<Sampled> out, std::span<TopLogprobs> top) {
  const Call& oldest = call(taken_++);
  oldest.done.wait();
  std::memcpy(out.data(), oldest.sampled.get(), out.size_bytes());
  if (!top.empty()) std::memcpy(top.data(), oldest.top.get(), top.size_bytes());
}

// The statistics of all rows.
void Sampler::find_stats(const Tensor& logits) {
  const Parts parts = parts_of(logits, parts_.get(), candidates_.get());
  launch(shape_of_parts("vocabulary_parts", parts, static_cast<std::size_t>(logits.rows), stream_),
         part_stats_kernel, parts, nullptr);
}

void Sampler::log_probs(const Tensor& logits, std::span<const std::int32_t> targets, std::span<Scored> out) {
  Call& mine = call(queued_);
  upload(targets, mine.targets.get(), targets_.get());
  find_stats(logits);
  const int rows = static_cast<int>(targets.size());
  launch(
      {"log_probs", dim3(static_cast<unsigned>(ceil_div(rows, kWarpSize))), dim3(kWarpSize), stream_.get()},
      log_probs_kernel, parts_of(logits, parts_.get(), candidates_.get()), rows, targets_.get(),
      sampled_.get());
  download(sampled_.get(), targets.size(), mine.sampled.get());
  stream_.wait();
  const auto* results = reinterpret_cast<const Sampled*>(mine.sampled.get());
  for (std::size_t r = 0; r < out.size(); ++r)
    out[r] = {results[r].logprob, results[r].finite() && results[r].token == targets[r]};
}

void Sampler::top_log_probs(const Tensor& logits, std::span<const std::int32_t> counts,
                            std::span<TopLogprobs> out) {
  Call& mine = call(queued_);
  upload(counts, mine.targets.get(), targets_.get());
  find_stats(logits);
  fill_top_logprobs(logits, parts_.get(), targets_.get(), top_.get(), stream_);
  download(top_.get(), counts.size(), mine.top.get());
  stream_.wait();
  std::memcpy(out.data(), mine.top.get(), out.size_bytes());
}

}  // namespace ptrt::cuda
