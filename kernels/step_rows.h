// The token rows of one step, and the bounds that all steps keep.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/kv_pool.h"

namespace ptrt {

// The rows of one step. Row r is the token at `positions[r]` of the sequence in slot `slots[r]`,
// whose pages are page_table[slot · page_table_stride + position / kPageTokens]. Rows of one
// sequence are neighbours with consecutive positions.
struct StepRows {
  std::span<const std::int32_t> positions;   // [rows]
  std::span<const std::int32_t> slots;       // [rows]
  std::span<const std::int32_t> page_table;  // [slots, page_table_stride]
  std::int64_t page_table_stride = 0;        // pages
  // A slot that belongs to no sequence, with a page that no sequence gets: for rows that only pad a
  // batch. -1: there is none.
  std::int32_t spare_slot = -1;
  // Every row is a token after a prompt: its sequence alone reads the page it goes to. Where a sequence has several
  // rows (drafts), attention takes each by itself. In other steps a row may read what another sequence's row writes.
  bool decodes = false;

  // The page that holds tokens [index · kPageTokens, (index + 1) · kPageTokens) of row r's
  // sequence.
  std::int64_t page(std::int64_t r, std::int64_t index) const {
    const std::int64_t slot = slots[static_cast<std::size_t>(r)];
    return page_table[static_cast<std::size_t>(slot * page_table_stride + index)];
  }
};

// The placeholder of a token that the host does not know yet: the one sampled for row `row` of the
// last StepExecution::queue_sample(). Always negative, so never a token.
constexpr std::int32_t token_of_sample(std::int32_t row) {
  return -1 - row;
}

// Rows of a step with drafts, at most: with more of them a processor is busy computing, and a wrong draft costs as
// much as a token.
inline constexpr std::int64_t kMostRowsWithDrafts = 32;

// The upper bounds of every later call; a backend sizes its scratch from them (Backend::reserve).
struct WorkLimits {
  std::int64_t tracks = 1;
  std::int64_t rows = 0;        // of a step
  std::int64_t logit_rows = 0;  // of one call of sample() or log_probs()
  std::int64_t sequences = 0;   // slots
  std::int64_t context = 0;     // tokens of a sequence
  std::int64_t heads = 0, head_dim = 0;
  std::int64_t experts = 0, top_k = 0;  // 0: no mixture of experts
  std::int64_t vocab = 0;               // of rows of logits with edits; 0: there are none

  // Rows of a step that decodes.
  std::int64_t decode_rows() const { return std::max(sequences, std::min(rows, kMostRowsWithDrafts)); }
  std::int64_t page_table_stride() const { return (context + kPageTokens - 1) / kPageTokens; }
};

}  // namespace ptrt
