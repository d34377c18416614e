// Causal attention over paged keys and values, read in place.
//
// The tokens of a sequence are cut at multiples of kPieceTokens into pieces and these at multiples
// of kSpanTokens into spans. One query goes through the spans of a piece in ascending order with a
// running softmax, and the pieces it sees are then merged in ascending order. So the bits depend on
// position, window and the content of the pages, not on how rows are grouped or which thread takes
// which piece; attention-inl.h and attention_avx512.h say what happens inside a span.
//
// Backend::attention says when q and the softmax weights are rounded to bfloat16. A weight is
// e^(score − the largest score up to its span's end); it is added to the sum of weights before it
// is rounded.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/host/memory.h"
#include "kernels/cpu/host/thread_pool.h"
#include "kernels/jobs.h"
#include "kernels/kv_pool.h"
#include "kernels/step_rows.h"

namespace ptrt {

class Attention {
 public:
  Attention(ThreadPool& pool, Compute compute) : pool_(pool), compute_(compute) {}

  // q and out [tracks, rows, heads · head_dim]; row r sees the tokens p - window + 1 … p of its
  // sequence, p its own position, or all up to p when the window is 0. Their keys and values must
  // be in `kv`.
  void run(const AttentionShape& shape, Tensor q, const StepRows& rows, std::int64_t layer, const KvPool& kv,
           Tensor out);

 private:
  // Rows that follow each other in one sequence: they share the loads of keys and values.
  struct RowBlock {
    std::int64_t first = 0, rows = 0;
  };
  void make_blocks(const StepRows& rows, std::int64_t count, std::int64_t max_rows);

  ThreadPool& pool_;
  Compute compute_;
  std::vector<RowBlock> blocks_;
  ScratchFloats scratch_;  // of all workers
  ScratchFloats states_;   // of the pieces that threads share
};

}  // namespace ptrt
