// Copies tensors from one model file into another, in the layout asked for; their elements stay as they are.
#pragma once

#include <cstddef>
#include <vector>

#include "model_io/file/model_file.h"
#include "model_io/file/model_writer.h"

namespace ptrt {

class TensorCopy {
 public:
  TensorCopy(const ModelFile& from, ModelWriter& to) : from_(from), to_(to) {}

  // A tensor as from.stat() found it. `layout` panels: those that products multiply by; the others are rows
  // in any case. Throws bad_input where the data is damaged.
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
