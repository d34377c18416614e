// Activations in the form that a kernel multiplies: rounded or quantised once a call, row by row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace ptrt {

// A row's record. Groups are of kInt8Group elements, the last one padded with zeros.
enum class RowFormat : std::uint8_t {
  plain,      // the float32 elements as they are: no copy
  rounded,    // float32 elements that bfloat16 holds
  quantised,  // float32 elements that int8 holds [in], then float32 scales [groups]
  bfloat16,   // 16-bit elements, padded with a zero to an even number
  int8,  // int8 elements [groups · 32], float32 scales [groups], int32 [groups]: −128 times the group's sum,
         // which takes the offset of the packed weights away
  int16,  // the same with int16 elements that int8 holds, of every four elements 0, 2, 1, 3
};

inline constexpr float kSmallestGroup = 1e-30f;  // so that 127 / m is finite

// Bytes of a record, a multiple of 64 (but for plain rows).
std::int64_t record_bytes(RowFormat format, std::int64_t in);

// Bytes from the start of a record to the scales and to the int32 after them.
constexpr std::int64_t scales_at(RowFormat format, std::int64_t in) {
  const std::int64_t padded = (in + kInt8Group - 1) / kInt8Group * kInt8Group;
  if (format == RowFormat::int16) return padded * 2;
  return format == RowFormat::int8 ? padded : in * 4;
}

// Writes the record of one row; not for plain rows. bfloat16: to nearest, ties to even. int8, int16: q = x
// · (127 / m) to nearest, ties to even, with m = max|x| of the group and scale = m / 127; a group
// with m <= kSmallestGroup is zeros with scale 0.
void write_record(RowFormat format, const float* x, std::int64_t in, std::byte* record);

}  // namespace ptrt
