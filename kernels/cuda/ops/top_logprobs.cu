#include "kernels/cuda/ops/vocab_parts.cuh"

namespace ptrt::cuda {
namespace {

// The largest key below `bound`; 0: there is none.
__device__ __forceinline__ Key next_key(const Row& row, Key bound, Shared& shared) {
  constexpr int kUnroll = 8;  // loads in flight
  Key best = 0;
  for (int base = row.begin; base < row.end; base += kThreads * kUnroll) {
    Key key[kUnroll];
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) {
      const int id = base + j * kThreads + thread_id();
      key[j] = id < row.end ? row.key_of(id) : 0;
    }
#pragma unroll
    for (const Key one : key)
      if (one < bound && one > best) best = one;
  }
  return reduce(best, shared.partial, Max{});
}

// One block per row: one token after the other, in the order of the keys.
__global__ void __launch_bounds__(kThreads)
    top_logprobs_kernel(Parts parts, const std::int32_t* counts, TokenLogprob* out) {
  pdl_trigger_and_wait();
  __shared__ Shared shared;
  const int count = counts[blockIdx.x];
  if (count == 0) return;
  const VocabPart* of_row = parts.of(blockIdx.x);
  Row row = parts.row(blockIdx.x);
  Key key = first_key(of_row, parts.count);
  const bool finite = Row::is_finite(key);
  row.max_logit = row.logits[Row::id_of(key)];
  TokenLogprob* mine = out + blockIdx.x * kMaxTopLogprobs;
  for (int i = 0; i < count; ++i) {
    if (i > 0 && finite) key = next_key(row, key, shared);
    const int token = Row::id_of(key);
    if (threadIdx.x != 0) continue;
    mine[i].token = finite ? token : 0;
    mine[i].logprob = finite ? log_prob(row, token, of_row, parts.count) : NAN;
  }
}

}  // namespace

void fill_top_logprobs(const Tensor& logits, VocabPart* parts, const std::int32_t* counts, TopLogprobs* out,
                       const Stream& stream) {
  launch({"top_logprobs", dim3(static_cast<unsigned>(logits.rows)), dim3(kThreads), stream.get()},
         top_logprobs_kernel, parts_of(logits, parts, nullptr), counts, out->data());
}

}  // namespace ptrt::cuda
