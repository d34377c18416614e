// What a step tells the device once: tokens, positions, slots and page table of its rows, and how its rows
// divide between the two attention kernels. Everything lies at fixed addresses from the start, so that a
// captured step can be run again with other contents.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/host/device_memory.h"

namespace ptrt::cuda {

// A run of rows that are consecutive tokens of one sequence.
struct Segment {
  std::int32_t first_row = 0, rows = 0;
};

// Device pointers, as kernels take them.
struct StepView {
  const std::int32_t* tokens = nullptr;       // [rows] below zero: token_of_sample()
  const std::int32_t* positions = nullptr;    // [rows]
  const std::int32_t* slots = nullptr;        // [rows]
  const std::int32_t* single_rows = nullptr;  // [single_count] rows that are a segment of their own
  const Segment* segments = nullptr;          // [segment_count] all others
  const std::int32_t* page_table = nullptr;   // [slots, page_table_stride]
  std::int64_t page_table_stride = 0;
};

class StepInput {
 public:
  StepInput(const WorkLimits& limits, const Stream& stream);

  // Copies a step to the device; does not wait for it. The spans may change when this returns.
  void set(std::span<const std::int32_t> tokens, const StepRows& rows);

  const StepView& view() const { return view_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t single_count() const { return static_cast<std::int64_t>(single_rows_.size()); }
  std::int64_t segment_count() const { return static_cast<std::int64_t>(segments_.size()); }
  std::int64_t longest_segment() const { return longest_segment_; }  // rows
  std::int64_t longest_context() const { return longest_context_; }  // tokens that a single row sees at most

 private:
  void find_segments(const StepRows& rows);
  // Pinned memory that mirrors the device's. Two, so that writing a step into one does not wait for the step
  // before it to have begun.
  struct Staging {
    std::shared_ptr<std::byte[]> pinned;
    Event copied;  // it may be written again after it
  };
  template <typename T>
  void stage(std::span<const T> values, const T* device, std::byte* pinned);

  const Stream& stream_;
  WorkLimits limits_;
  DevicePointer<std::byte> device_;
  Staging staging_[2];
  int turn_ = 0;
  StepView view_;
  std::int64_t rows_ = 0, longest_segment_ = 0, longest_context_ = 0;
  std::vector<std::int32_t> single_rows_;
  std::vector<Segment> segments_;
};

}  // namespace ptrt::cuda
