// Rows of logits with their edits applied, beside the rows as they are: a group of rows at a time, so that the
// memory is bounded.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/host/device_memory.h"
#include "kernels/cuda/ops/vocab_part.h"
#include "kernels/jobs.h"
#include "kernels/step_rows.h"

namespace ptrt::cuda {

// A row of a group.
struct EditedRow {
  std::int32_t row = 0;                    // of the call
  std::int32_t first_edit = 0, edits = 0;  // of its group's
  std::int32_t is_masked = 0;
};

// The edits of one call, on the host; the device reads them until the call is done.
struct StagedEdits {
  struct Group {
    std::size_t first = 0, rows = 0;  // of `rows` below
    std::size_t first_edit = 0, edits = 0;
  };
  std::vector<EditedRow> rows;
  std::vector<SampleParams> params;  // of these rows, without log-probabilities
  std::vector<TokenEdit> edits;
  std::vector<std::uint64_t> masks;  // [rows, mask_words(vocab)]
  std::vector<Group> groups;
};

// A group in device memory: what a choice needs.
struct EditedBatch {
  Tensor logits;  // [1, rows, vocab]; -infinity: the token may not be chosen
  std::span<const SampleParams> params;
  const SampleParams* params_on_device = nullptr;
  VocabPart* parts = nullptr;  // scratch of these rows
  Sampled* sampled = nullptr;  // what is chosen for them
};

class EditedRows {
 public:
  // For rows of up to limits.vocab tokens; 0: there are none.
  EditedRows(const WorkLimits& limits, const Stream& stream);

  // Fills `staged` with the rows of `params` that have edits, of tokens below `vocab`, which is at most
  // limits.vocab.
  void stage(std::int64_t vocab, std::span<const SampleParams> params, StagedEdits& staged) const;
  // Queues the writing of one group's rows. Valid until the next.
  EditedBatch write(const Tensor& logits, const StagedEdits& staged, const StagedEdits::Group& group);
  // Queues: what was chosen for the rows of the group goes to sampled[row of the call], with the
  // log-probabilities of the logits as they are, whose statistics are `parts`.
  void finish(const Tensor& logits, VocabPart* parts, const StagedEdits::Group& group,
              const SampleParams* params, Sampled* sampled);

 private:
  const Stream& stream_;
  std::size_t max_rows_, max_edits_;  // of a group
  DevicePointer<EditedRow> rows_;
  DevicePointer<SampleParams> params_;
  DevicePointer<TokenEdit> edits_;
  DevicePointer<std::uint64_t> masks_;
  DevicePointer<float> logits_;
  DevicePointer<VocabPart> parts_;
  DevicePointer<Sampled> sampled_;
};

}  // namespace ptrt::cuda
