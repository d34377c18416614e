// The division of rows of logits into parts, with the statistics of each part: for the kernels that choose
// tokens and those that tell how likely they are.
#pragma once

#include <algorithm>

#include "kernels/cuda/ops/sampling.h"
#include "kernels/cuda/ops/vocab_row.cuh"

namespace ptrt::cuda {
namespace {

// The logits and the parts of all rows.
struct Parts {
  const float* logits;     // [rows, vocab]
  VocabPart* of_rows;      // [rows, count]
  Candidates* candidates;  // [rows]
  int vocab, count, tokens;
  float least;  // of edited rows -infinity: a token that may not be chosen

  __device__ __forceinline__ VocabPart* of(unsigned row) const {
    return of_rows + static_cast<std::int64_t>(row) * count;
  }
  __device__ __forceinline__ Row row(unsigned number) const {
    return {logits + static_cast<std::int64_t>(number) * vocab, vocab, 0, vocab, nullptr, 0, 1, least};
  }
  __device__ __forceinline__ Row row_within(unsigned number, int part) const {
    Row row = this->row(number);
    row.begin = min(part * tokens, vocab);
    row.end = min(row.begin + tokens, vocab);
    return row;
  }
};

// The key of the row's first token, by which also is_finite() of the row is known.
__device__ __forceinline__ Key first_key(const VocabPart* parts, int count) {
  Key best = 0;
  for (int part = 0; part < count; ++part) best = max(best, parts[part].best);
  return best;
}

// Of a finite row, and finite itself: logits at the two ends of float32 are farther apart than
// float32 can tell.
__device__ __forceinline__ float log_prob(const Row& row, int token, const VocabPart* parts, int count) {
  float sum = 0;
  for (int part = 0; part < count; ++part)
    sum += parts[part].sum * expf(row.logits[Row::id_of(parts[part].best)] - row.max_logit);
  return fmaxf(row.logits[token] - row.max_logit - logf(sum), -FLT_MAX);
}

inline Parts parts_of(const Tensor& logits, VocabPart* memory, Candidates* candidates,
                      float least = -FLT_MAX) {
  const int vocab = static_cast<int>(logits.width);
  const int tokens = std::max(kVocabPartTokens, ceil_div(vocab, kMaxVocabParts));
  return {logits.row(0, 0), memory, candidates, vocab, ceil_div(vocab, tokens), tokens, least};
}

inline LaunchShape shape_of_parts(const char* kernel, const Parts& parts, std::size_t rows,
                                  const Stream& stream) {
  return {kernel, dim3(static_cast<unsigned>(parts.count), static_cast<unsigned>(rows)), dim3(kThreads),
          stream.get()};
}

}  // namespace
}  // namespace ptrt::cuda
