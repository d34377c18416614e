// A step's inputs on the device: tokens, positions, slots and page table of its rows, and which
// rows are decode rows or prefill chunks. All are at fixed addresses, so that a captured step can
// be replayed with other contents.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cuda/host/device_memory.h"
#include "kernels/step_rows.h"

namespace ptrt::cuda {

// A row that attention takes by itself. Its sequence's keys and values before position first_new are those of earlier
// steps, which a kernel may read before it has waited for those of this step.
struct DecodeRow {
  std::int32_t row = 0, first_new = 0;
};

// Two or more rows that are consecutive tokens of one sequence.
struct PrefillChunk {
  std::int32_t first_row = 0, rows = 0;
};

// Device pointers, passed to kernels by value.
struct StepView {
  const std::int32_t* tokens = nullptr;          // [rows] negative: token_of_sample()
  const std::int32_t* positions = nullptr;       // [rows]
  const std::int32_t* slots = nullptr;           // [rows]
  const DecodeRow* decode_rows = nullptr;        // [decode_row_count]
  const PrefillChunk* prefill_chunks = nullptr;  // [prefill_chunk_count] all other rows
  const std::int32_t* page_table = nullptr;      // [slots, page_table_stride]
  std::int64_t page_table_stride = 0;
};

class StepInput {
 public:
  StepInput(const WorkLimits& limits, const Stream& stream);

  // Queues the copy of a step's inputs to the device, without waiting. The spans may change after
  // the return.
  void set(std::span<const std::int32_t> tokens, const StepRows& rows);

  const StepView& view() const { return view_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t decode_row_count() const { return static_cast<std::int64_t>(decode_rows_.size()); }
  std::int64_t prefill_chunk_count() const { return static_cast<std::int64_t>(prefill_chunks_.size()); }
  std::int64_t longest_prefill_chunk() const { return longest_prefill_chunk_; }  // rows
  std::int64_t longest_decode_context() const {
    return longest_decode_context_;
  }  // the most tokens of a decode row's sequence

 private:
  void split_rows(const StepRows& rows);
  // Pinned memory with the device's layout. Double-buffered, so that writing a step does not wait
  // until the step before it has started.
  struct Staging {
    std::shared_ptr<std::byte[]> pinned;
    Event copied;  // after it the memory may be overwritten
  };
  template <typename T>
  void stage(std::span<const T> values, const T* device, std::byte* pinned);

  const Stream& stream_;
  WorkLimits limits_;
  DevicePointer<std::byte> device_;
  Staging staging_[2];
  int current_ = 0;
  StepView view_;
  std::int64_t rows_ = 0, longest_prefill_chunk_ = 0, longest_decode_context_ = 0;
  std::vector<DecodeRow> decode_rows_;
  std::vector<PrefillChunk> prefill_chunks_;
};

}  // namespace ptrt::cuda
