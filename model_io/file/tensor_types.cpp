#include "model_io/file/tensor_types.h"

#include "kernels/base/error.h"
#include "kernels/cpu/weights/packed.h"

namespace ptrt {
namespace {

std::string attribute_text(const std::optional<std::string>& dtype) {
  return dtype ? fmt::format("dtype = \"{}\"", *dtype) : "none";
}

}  // namespace

std::optional<WeightLayout> stored_layout(const H5Dataset& dataset, const TensorSpec& spec,
                                          const std::string& file) {
  const auto name = dataset.string_attribute("layout");
  if (!name) return std::nullopt;
  if (*name == kRowLayoutName) return WeightLayout::rows;
  if (*name != kPanelLayoutName)
    throw_bad_input(
        "{}: dataset {}: layout \"{}\" is not known here, \"{}\" is: `ptrt pack --layout rows` of the "
        "version that wrote the file makes a plain one of it",
        file, spec.path, *name, kPanelLayoutName);
  if (!is_multiplied(spec.role))
    throw_bad_input("{}: dataset {}: layout \"{}\" is for matrices that products take", file, spec.path,
                    *name);
  return WeightLayout::panels;
}

DType panel_type(const H5Dataset& dataset, const TensorSpec& spec, const std::string& file) {
  if (dataset.info().type != H5Type::uint8)
    throw_bad_input("{}: dataset {}: expected uint8 for layout \"{}\", found {}", file, spec.path,
                    kPanelLayoutName, dataset.type_name());
  const auto name = dataset.string_attribute("dtype");
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16, DType::int8}) {
    if (name != to_string(dtype)) continue;
    if (dtype == DType::int8 && spec.role != WeightRole::matrix) break;
    return dtype;
  }
  throw_bad_input(
      "{}: dataset {}: expected the attribute dtype = \"float32\", \"float16\"{} \"bfloat16\"{}, found {}",
      file, spec.path, spec.role == WeightRole::matrix ? "," : " or",
      spec.role == WeightRole::matrix ? " or \"int8\"" : "", name ? fmt::format("\"{}\"", *name) : "none");
}

DType element_type(const H5Dataset& dataset, const TensorSpec& spec, const std::string& file) {
  const bool matrix = spec.role == WeightRole::matrix;
  std::optional<std::string> dtype;  // of types of elements that need it
  switch (dataset.info().type) {
    case H5Type::float32:
      return DType::float32;
    case H5Type::float16:
      return DType::float16;
    case H5Type::uint16:
      dtype = dataset.string_attribute("dtype");
      if (dtype == "bfloat16") return DType::bfloat16;
      throw_bad_input("{}: dataset {}: uint16 needs the attribute dtype = \"bfloat16\", found {}", file,
                      spec.path, attribute_text(dtype));
    case H5Type::int8:
      if (matrix) return DType::int8;
      break;
    case H5Type::uint8:
      dtype = dataset.string_attribute("dtype");
      if (matrix && dtype == to_string(DType::float8_e4m3)) return DType::float8_e4m3;
      break;
    case H5Type::other:
      break;
  }
  throw_bad_input(
      "{}: dataset {}: expected float32, float16{} bfloat16 (uint16 with the attribute dtype = "
      "\"bfloat16\"){}, found {}{}",
      file, spec.path, matrix ? "," : " or",
      matrix ? ", int8 or float8 (uint8 with dtype = \"float8_e4m3fn\")"
             : "; int8 and float8 are for matrices",
      dataset.type_name(), dtype ? " with " + attribute_text(dtype) : "");
}

}  // namespace ptrt
