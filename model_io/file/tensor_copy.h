// Copies tensors from one model file to another in a given layout; their elements stay the same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model_io/file/model_file.h"
#include "model_io/file/model_writer.h"

namespace ptrt {

class TensorCopy {
 public:
  enum class NotFinite : std::uint8_t { keep, refuse };  // elements of floating types

  TensorCopy(const ModelFile& from, ModelWriter& to, NotFinite not_finite)
      : from_(from), to_(to), not_finite_(not_finite) {}

  // Copies a tensor that from.stat() found. Layout panels applies to tensors that products multiply
  // by, and not to float8; the others are always rows. Throws bad_input where the data is damaged, where rows
  // have what is to be refused, and where float8 has NaN.
  void copy(const TensorSpec& spec, const StoredTensor& stored, WeightLayout layout);

 private:
  void copy_rows(const TensorSpec& spec, const StoredTensor& stored, TensorReader& reader);
  void copy_scaled_rows(const TensorSpec& spec, DType dtype, TensorReader& reader);
  void copy_panels(const TensorSpec& spec, const StoredTensor& stored, TensorReader& reader);

  const ModelFile& from_;
  ModelWriter& to_;
  NotFinite not_finite_;
  std::vector<std::byte> rows_, scales_;
};

}  // namespace ptrt
