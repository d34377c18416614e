// Copies tensors from one model file to another in a given layout; their elements stay the same.
#pragma once

#include <cstddef>
#include <vector>

#include "model_io/file/model_file.h"
#include "model_io/file/model_writer.h"

namespace ptrt {

class TensorCopy {
 public:
  TensorCopy(const ModelFile& from, ModelWriter& to) : from_(from), to_(to) {}

  // Copies a tensor that from.stat() found. Layout panels applies to tensors that products multiply
  // by; the others are always rows. Throws bad_input where the data is damaged.
  void copy(const TensorSpec& spec, const StoredTensor& stored, WeightLayout layout);

 private:
  void copy_int8_rows(const TensorSpec& spec, TensorReader& reader);
  void copy_panels(const TensorSpec& spec, const StoredTensor& stored, TensorReader& reader);

  const ModelFile& from_;
  ModelWriter& to_;
  std::vector<std::byte> rows_;
  std::vector<std::uint16_t> scales_;
};

}  // namespace ptrt
