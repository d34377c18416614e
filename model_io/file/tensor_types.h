// The type and layout of a tensor's elements, as its dataset's type and attributes say (docs/MODEL_FILE.md).
#pragma once

#include <optional>
#include <string>

#include "kernels/weight_source.h"
#include "model_io/config/tensor_names.h"
#include "model_io/hdf5/h5_file.h"

namespace ptrt {

// All throw bad_input, naming `file` and the dataset, on what is unknown or not allowed for the tensor.

// Named by the attribute `layout`; none without it, which means rows.
std::optional<WeightLayout> stored_layout(const H5Dataset& dataset, const TensorSpec& spec,
                                          const std::string& file);
// In rows.
DType element_type(const H5Dataset& dataset, const TensorSpec& spec, const std::string& file);
// In panels the attribute `dtype` names the type, and the dataset has bytes.
DType panel_type(const H5Dataset& dataset, const TensorSpec& spec, const std::string& file);

}  // namespace ptrt
