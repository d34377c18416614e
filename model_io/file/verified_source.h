// A weight's source that checks what it gave against recorded checksums.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "kernels/weight_source.h"

namespace ptrt {

class VerifiedSource : public WeightSource {
 public:
  virtual DType dtype() const = 0;
  // The elements [column, column + columns) of `count` rows from `first` on; of int8, whole groups,
  // except that a row's last group may be shorter. Elements read this way are not in verify()'s
  // checksums.
  virtual void read_columns(std::int64_t first, std::int64_t count, std::int64_t column, std::int64_t columns,
                            std::span<std::byte> out) = 0;
  virtual void read_scale_columns(std::int64_t first, std::int64_t count, std::int64_t column,
                                  std::int64_t columns, std::span<std::byte> out) = 0;
  // After every row was read once: the checksums of what was read, in hexadecimal. Throws bad_input
  // where they differ from the recorded ones.
  virtual std::string verify() const = 0;
  // The recorded checksums, written as verify() writes them; empty where none are recorded.
  virtual std::string recorded_checksums() const = 0;
};

}  // namespace ptrt
