// A weight's source that knows the checksums of what it gave.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "kernels/weight_source.h"

namespace ptrt {

// What was read of one dataset.
struct ReadContent {
  std::size_t total = 0;  // bytes of the dataset
  std::size_t bytes = 0;  // of these, what counts: see VerifiedSource
  std::uint32_t crc = 0;  // what those contribute to the CRC-32C of the dataset; of all of them that CRC-32C
  std::optional<std::uint32_t> recorded;  // CRC-32C in the file
  bool in_memory = false;                 // all of it was read, however little was asked for
  // Checksums of bytes that readers of other parts read too, by their place. Readers of the same place must have
  // the same one.
  std::map<std::uint64_t, std::uint32_t> shared = {};
};

// A byte of the file counts once, for the rank that has the first element in it: ranks whose parts make up a
// tensor count every byte of it once.
class VerifiedSource : public WeightSource {
 public:
  virtual DType dtype() const = 0;
  // The elements [column, column + columns) of `count` rows from `first` on; of int8, whole groups,
  // except that a row's last group may be shorter. As with read(), each element is read once. Scales: of int8, of
  // these groups; of float8, of these rows, which those that read other columns of them read too.
  virtual void read_columns(std::int64_t first, std::int64_t count, std::int64_t column, std::int64_t columns,
                            std::span<std::byte> out) = 0;
  virtual void read_scale_columns(std::int64_t first, std::int64_t count, std::int64_t column,
                                  std::int64_t columns, std::span<std::byte> out) = 0;
  // After every row was read once: throws bad_input where a checksum differs from the recorded one.
  virtual void verify() const = 0;
  // Of the tensor's elements, then of its scales where they are a dataset of their own.
  virtual std::vector<ReadContent> contents() const = 0;
};

}  // namespace ptrt
