#include "model_io/file/model_metadata.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

using nlohmann::json;

// Arrays, each in the order of its struct's members: names would be most of the bytes.
json optional_json(const auto& value) {
  return value ? json(*value) : json(nullptr);
}

template <typename T>
std::optional<T> optional_value(const json& value) {
  return value.is_null() ? std::nullopt : std::optional<T>(value.get<T>());
}

json dataset_json(const StoredDataset& stored) {
  return json::array(
      {stored.file, stored.name, stored.bytes, optional_json(stored.crc32c), optional_json(stored.offset)});
}

StoredDataset dataset_value(const json& value) {
  StoredDataset stored;
  stored.file = value.at(0);
  stored.name = value.at(1);
  stored.bytes = value.at(2);
  stored.crc32c = optional_value<std::uint32_t>(value.at(3));
  stored.offset = optional_value<std::uint64_t>(value.at(4));
  return stored;
}

json tensor_json(const ModelMetadata::Tensor& tensor) {
  const StoredTensor& stored = tensor.stored;
  return json::array({tensor.role, dataset_json(stored), stored.dtype, stored.shape,
                      stored.scales ? dataset_json(*stored.scales) : json(nullptr), stored.layout});
}

ModelMetadata::Tensor tensor_value(const json& value) {
  StoredTensor stored{dataset_value(value.at(1)), value.at(2).get<DType>(), value.at(3), {}, {}};
  if (!value.at(4).is_null()) stored.scales = dataset_value(value.at(4));
  stored.layout = value.at(5);
  return {value.at(0).get<WeightRole>(), std::move(stored)};
}

}  // namespace

std::string to_bytes(const ModelMetadata& metadata) {
  json files = json::array(), tensors = json::array();
  for (const auto& file : metadata.files) files.push_back(json::array({file.path, file.device, file.inode}));
  for (const auto& tensor : metadata.tensors) tensors.push_back(tensor_json(tensor));
  const TokenizerBlob& tokenizer = metadata.tokenizer;
  const json whole =
      json::array({metadata.config, tokenizer.kind, json::binary(tokenizer.model), tokenizer.file,
                   std::move(files), metadata.other_files, metadata.track_files, std::move(tensors)});
  std::string bytes;
  json::to_cbor(whole, bytes);
  return bytes;
}

ModelMetadata metadata_from_bytes(std::string_view bytes, const std::string& path) {
  try {
    const json whole = json::from_cbor(bytes);
    ModelMetadata metadata;
    metadata.config = whole.at(0);
    metadata.tokenizer = {whole.at(1), whole.at(2).get_binary(), whole.at(3)};
    for (const json& file : whole.at(4)) metadata.files.push_back({file.at(0), file.at(1), file.at(2)});
    metadata.other_files = whole.at(5);
    metadata.track_files = whole.at(6);
    for (const json& tensor : whole.at(7)) metadata.tensors.push_back(tensor_value(tensor));
    return metadata;
  } catch (const json::exception&) {
    throw_bad_input("{}: damaged HDF5 file: what was read of its metadata makes no sense", path);
  }
}

}  // namespace ptrt
