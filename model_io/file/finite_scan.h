// Finds NaNs and infinities in a dataset while its bytes are read for something else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model_io/file/tensor_reader.h"

namespace ptrt {

class FiniteScan {
 public:
  // `tensor`, which outlives this object, describes the dataset: its elements; of int8 in panels, the
  // scales between them. Other int8 elements are all finite. Elements of float8 that are NaN count as not finite.
  explicit FiniteScan(const StoredTensor& tensor) : FiniteScan(tensor, Of::content) {}
  // Of the dataset of an int8 or float8 tensor's scales. Scales must not be negative either.
  static FiniteScan of_scales(const StoredTensor& tensor) { return {tensor, Of::scales}; }

  // The dataset's bytes from `at` on: whole elements, each once, in any order.
  void add(std::size_t at, std::span<const std::byte> bytes);

  std::int64_t count() const { return count_; }  // of elements (or scales) that are not finite
  // The first of them in the dataset: its index in the tensor, a scale's with its group in place of the
  // column (float8: 0). There must be one.
  std::vector<std::int64_t> first() const;
  // "2 elements are not finite; the first is [3, 7]: nan"; "" if there are none.
  std::string describe() const;

 private:
  enum class Of : std::uint8_t { content, scales };
  FiniteScan(const StoredTensor& tensor, Of of);

  // A type of elements, as bits: those with all bits of `exponent` set are not finite. `wrong`: bits of
  // which none may be set, finite or not.
  template <typename Bits>
  struct Format {
    Bits exponent, wrong;
  };
  template <typename Bits>
  void scan(std::size_t at, std::span<const std::byte> bytes, Format<Bits> format);
  void scan_scale_lines(std::size_t at, std::span<const std::byte> bytes);
  void scan_float8(std::size_t at, std::span<const std::byte> bytes);
  void found(std::size_t at, float value);
  bool has_scales() const { return of_ == Of::scales || tensor_.dtype == DType::int8; }

  const StoredTensor& tensor_;
  Of of_;
  std::int64_t count_ = 0;
  std::size_t first_at_ = 0;  // in bytes
  float first_value_ = 0;
};

}  // namespace ptrt
