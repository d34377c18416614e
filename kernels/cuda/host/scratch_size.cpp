#include "kernels/cuda/host/scratch_size.h"

#include "kernels/jobs.h"

namespace ptrt {
namespace {

constexpr std::int64_t kMaxVocabParts =
    32;  // as in cuda/ops/vocab_part.h; a test compares the sum with the real allocations
constexpr std::size_t kVocabPartBytes = 24;
constexpr std::size_t kCandidatesBytes = 2048 * 8 + 4096 * 4 + 8;
constexpr std::size_t kEditedRowBytes = 16;
constexpr std::int64_t kGranule = 512;

class Sum {
 public:
  void add(std::int64_t count, std::size_t element) {
    const std::int64_t bytes = count * static_cast<std::int64_t>(element);
    total_ += (bytes + kGranule - 1) / kGranule * kGranule;
  }
  std::size_t total() const { return static_cast<std::size_t>(total_); }

 private:
  std::int64_t total_ = 0;
};

}  // namespace

std::size_t cuda_scratch_bytes(const WorkLimits& limits) {
  constexpr std::size_t kIndex = sizeof(std::int32_t);
  Sum sum;
  // The step: token, position and slot of each row, the page table, decode rows, prefill chunks.
  sum.add(limits.rows, 3 * kIndex);
  sum.add(limits.sequences * limits.page_table_stride(), kIndex);
  sum.add(limits.decode_rows(), 2 * kIndex);
  sum.add(limits.sequences, 2 * kIndex);
  // Decode attention: Σ P·V, maximum and Σ P of every split, and the number of finished splits.
  if (const std::int64_t splits = most_head_splits(limits); splits > 0) {
    sum.add(splits * (limits.head_dim + 2), sizeof(float));
    sum.add(limits.tracks * limits.decode_rows() * limits.heads, kIndex);
  }
  // Mixture of experts: the choices, the slots grouped by expert, the offsets of the experts'
  // slots.
  if (limits.experts > 0) {
    const std::int64_t slots = limits.rows * limits.top_k;
    sum.add(limits.tracks * slots, kIndex + sizeof(float));
    sum.add(limits.tracks * slots, kIndex);
    sum.add(limits.tracks * (limits.experts + 1), kIndex);
  }
  // Sampling.
  sum.add(limits.logit_rows, sizeof(SampleParams));
  sum.add(limits.logit_rows, kIndex);
  sum.add(limits.logit_rows, sizeof(Sampled));
  sum.add(limits.logit_rows * kMaxVocabParts, kVocabPartBytes);
  sum.add(limits.logit_rows, kCandidatesBytes);
  sum.add(limits.logit_rows, sizeof(TopLogprobs));
  // Edited rows.
  const std::int64_t edited = most_edited_rows(limits);
  sum.add(edited, kEditedRowBytes);
  sum.add(edited, sizeof(SampleParams));
  sum.add(most_token_edits(limits), sizeof(TokenEdit));
  sum.add(edited * mask_words(limits.vocab), sizeof(std::uint64_t));
  sum.add(edited * limits.vocab, sizeof(float));
  sum.add(edited * kMaxVocabParts, kVocabPartBytes);
  sum.add(edited, sizeof(Sampled));
  return sum.total();
}

}  // namespace ptrt
