// Causal attention over paged keys and values, read in place.
//
// One query goes through its visible pages in ascending order with a running softmax. Inside a page: scores
// of the visible tokens (each a sum over head_dim as simd-inl.h says, then times 1/sqrt(head_dim)), their
// maximum, their exponentials summed over the page's sixteen places (zero where not visible), and the values
// added token by token. So the bits hang on position, window and what the pages hold, not on how rows are
// grouped.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/thread_pool.h"

namespace ptrt {

class Attention {
 public:
  explicit Attention(ThreadPool& pool) : pool_(pool) {}

  // q and out [tracks, rows, heads · head_dim]; row r sees the tokens p - window + 1 … p of its sequence, p
  // its own position, or all up to p when the window is 0. Their keys and values must be in `kv`.
  void run(const AttentionShape& shape, Tensor q, const StepRows& rows, std::int64_t layer, const KvPool& kv,
           Tensor out);

 private:
  // Rows that follow each other in one sequence: they share the loads of keys and values.
  struct RowBlock {
    std::int64_t first = 0, rows = 0;
  };
  void make_blocks(const StepRows& rows, std::int64_t count, std::int64_t max_rows);

  ThreadPool& pool_;
  std::vector<RowBlock> blocks_;
  ScratchFloats scratch_;  // of all workers
};

}  // namespace ptrt
