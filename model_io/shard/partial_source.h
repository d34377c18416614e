// A part of every matrix of a tensor, as a tensor of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "model_io/file/verified_source.h"
#include "model_io/shard/track_split.h"

namespace ptrt {

class PartialSource final : public WeightSource {
 public:
  // `spec` is that of `whole`, which outlives this object.
  PartialSource(VerifiedSource& whole, const WeightSpec& spec, const TensorPart& part)
      : whole_(whole), whole_rows_(spec.out), whole_columns_(spec.in), part_(part) {}

  void read(std::int64_t first, std::span<std::byte> rows) override;
  void read_scales(std::int64_t first, std::span<std::byte> scales) override;

 private:
  bool has_whole_rows() const { return part_.columns == whole_columns_; }
  // body(row of the source, rows, where to) for the rows of one matrix at a time.
  template <typename Body>
  void for_runs(std::int64_t first, std::span<std::byte> to, std::size_t row_bytes, const Body& body) const;

  VerifiedSource& whole_;
  std::int64_t whole_rows_, whole_columns_;  // of one matrix
  TensorPart part_;
};

}  // namespace ptrt
