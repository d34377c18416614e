#include "kernels/cuda/host/step_input.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/cuda/base/cuda_check.h"

namespace ptrt::cuda {
namespace {

constexpr std::size_t kAlignment = 16;

// Assigns pieces of one block of memory; with a null base it only counts the bytes.
class Pieces {
 public:
  explicit Pieces(std::byte* base) : base_(base) {}
  template <typename T>
  T* take(std::int64_t count) {
    auto* piece = reinterpret_cast<T*>(base_ == nullptr ? nullptr : base_ + bytes_);
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return piece;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  std::size_t bytes_ = 0;
};

StepView lay_out(const WorkLimits& limits, Pieces& pieces) {
  StepView view;
  view.tokens = pieces.take<std::int32_t>(limits.rows);
  view.positions = pieces.take<std::int32_t>(limits.rows);
  view.slots = pieces.take<std::int32_t>(limits.rows);
  view.decode_rows = pieces.take<DecodeRow>(limits.decode_rows());
  view.prefill_chunks = pieces.take<PrefillChunk>(limits.sequences);
  // Last, so that one copy ends with the part of it that a step uses.
  view.page_table = pieces.take<std::int32_t>(limits.sequences * limits.page_table_stride());
  view.page_table_stride = limits.page_table_stride();
  return view;
}

}  // namespace

StepInput::StepInput(const WorkLimits& limits, const Stream& stream) : stream_(stream), limits_(limits) {
  Pieces count(nullptr);
  lay_out(limits, count);
  device_ = allocate_device(count.bytes(), "the step's rows and page table");
  for (Staging& staging : staging_)
    staging.pinned = allocate_pinned(count.bytes(), "the step's rows and page table");
  Pieces pieces(device_.get());
  view_ = lay_out(limits, pieces);
  decode_rows_.reserve(static_cast<std::size_t>(limits.decode_rows()));
  prefill_chunks_.reserve(static_cast<std::size_t>(limits.sequences));
}

void StepInput::set(std::span<const std::int32_t> tokens, const StepRows& rows) {
  rows_ = static_cast<std::int64_t>(rows.positions.size());
  PTRT_CHECK(rows_ <= limits_.rows && rows.slots.size() == rows.positions.size());
  PTRT_CHECK(tokens.empty() || tokens.size() == rows.positions.size());
  PTRT_CHECK(rows.page_table_stride <= limits_.page_table_stride());
  PTRT_CHECK(static_cast<std::int64_t>(rows.page_table.size()) <=
             limits_.sequences * limits_.page_table_stride());
  split_rows(rows);
  Staging& staging = staging_[current_ ^= 1];
  staging.copied.wait();  // of the step before the last
  std::byte* pinned = staging.pinned.get();
  stage(tokens, view_.tokens, pinned);
  stage(rows.positions, view_.positions, pinned);
  stage(rows.slots, view_.slots, pinned);
  stage(std::span<const DecodeRow>(decode_rows_), view_.decode_rows, pinned);
  stage(std::span<const PrefillChunk>(prefill_chunks_), view_.prefill_chunks, pinned);
  stage(rows.page_table, view_.page_table, pinned);
  view_.page_table_stride = rows.page_table_stride;
  const auto* end = reinterpret_cast<const std::byte*>(view_.page_table + rows.page_table.size());
  PTRT_CUDA_CHECK(cudaMemcpyAsync(device_.get(), pinned, static_cast<std::size_t>(end - device_.get()),
                                  cudaMemcpyHostToDevice, stream_.get()));
  staging.copied.record(stream_);
}

template <typename T>
void StepInput::stage(std::span<const T> values, const T* device, std::byte* pinned) {
  if (values.empty()) return;
  const auto offset = reinterpret_cast<const std::byte*>(device) - device_.get();
  std::memcpy(pinned + offset, values.data(), values.size_bytes());
}

void StepInput::split_rows(const StepRows& rows) {
  decode_rows_.clear();
  prefill_chunks_.clear();
  longest_prefill_chunk_ = longest_decode_context_ = 0;
  const auto continues = [&](std::size_t r) {
    return r < rows.slots.size() && rows.slots[r] == rows.slots[r - 1] &&
           rows.positions[r] == rows.positions[r - 1] + 1;
  };
  for (std::size_t first = 0, next = 0; first < rows.slots.size(); first = next) {
    for (next = first + 1; continues(next); ++next) {
    }
    const auto count = static_cast<std::int32_t>(next - first);
    if (count == 1 || rows.decodes) {
      for (std::size_t r = first; r < next; ++r)
        decode_rows_.push_back({static_cast<std::int32_t>(r), rows.decodes ? rows.positions[first] : 0});
      longest_decode_context_ = std::max<std::int64_t>(longest_decode_context_, rows.positions[next - 1] + 1);
    } else {
      prefill_chunks_.push_back({static_cast<std::int32_t>(first), count});
      longest_prefill_chunk_ = std::max<std::int64_t>(longest_prefill_chunk_, count);
    }
  }
  PTRT_CHECK(static_cast<std::int64_t>(decode_rows_.size()) <= limits_.decode_rows());
  PTRT_CHECK(static_cast<std::int64_t>(prefill_chunks_.size()) <= limits_.sequences);
}

}  // namespace ptrt::cuda
