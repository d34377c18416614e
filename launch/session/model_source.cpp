#include "launch/session/model_source.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>

#include "kernels/base/files.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"

namespace ptrt {

namespace {

// A type, as long as all that were added are the same.
class CommonType {
 public:
  void add(DType type) {
    same_ &= type_.value_or(type) == type;
    type_ = type;
  }
  std::optional<DType> get() const { return same_ ? type_ : std::nullopt; }

 private:
  std::optional<DType> type_;
  bool same_ = true;
};

}  // namespace

void ModelSource::for_each_weight(
    const Placement& placement,
    const std::function<void(const TensorSpec&, const StoredTensor&)>& look) const {
  if (!file) return;
  const auto look_at = [&](const std::vector<TensorSpec>& tensors) {
    for (const TensorSpec& spec : tensors) look(spec, file->stat(spec));
  };
  look_at(shared_tensors(config));
  for (std::int64_t t = 0; t < placement.tracks; t++)
    look_at(track_tensors(config, placement.first_track + t));
}

std::optional<DType> ModelSource::stored_type(const Placement& placement,
                                              std::initializer_list<WeightRole> roles) const {
  if (!file) return DType::bfloat16;  // random weights
  CommonType type;
  for_each_weight(placement, [&](const TensorSpec& spec, const StoredTensor& stored) {
    if (std::ranges::find(roles, spec.role) != roles.end()) type.add(stored.dtype);
  });
  return type.get();
}

std::optional<DType> ModelSource::cpu_matrix_type(const Placement& placement) const {
  if (!file) return DType::bfloat16;
  CommonType type;
  for_each_weight(placement, [&](const TensorSpec& spec, const StoredTensor& stored) {
    if (spec.role == WeightRole::matrix)
      type.add(stored.dtype == DType::float8_e4m3 ? stored.widened : stored.dtype);
  });
  return type.get();
}

bool ModelSource::has_matrix(const Placement& placement, DType type) const {
  bool found = false;
  for_each_weight(placement, [&](const TensorSpec& spec, const StoredTensor& stored) {
    found |= spec.role == WeightRole::matrix && stored.dtype == type;
  });
  return found;
}

bool ModelSource::has_panels() const {
  if (!file) return false;
  for (const TensorSpec& spec : shared_tensors(config))  // the head is stored as the other matrices are
    if (is_multiplied(spec.role)) return file->stat(spec).layout == WeightLayout::panels;
  return false;
}

ModelSource open_model(const std::string& file, bool trust_links, const ModelMetadata* known,
                       const std::string& random_config) {
  ModelSource model;
  if (random_config.empty()) {
    model.file.emplace(file, trust_links, known);
    model.config = model.file->config();
    const TokenizerBlob blob = model.file->tokenizer();
    model.tokenizer_text = fmt::format("\"{}\", {} bytes, XXH3 {:016x}", blob.kind, blob.model.size(),
                                       XXH3_64bits(blob.model.data(), blob.model.size()));
    model.chat_template = blob.chat_template;
    model.tokenizer = make_tokenizer(blob, model.config);
  } else {
    model.config = parse_config(read_text_file(random_config, "the configuration"), random_config);
    model.tokenizer.why_none = "random weights have no tokenizer";
  }
  return model;
}

}  // namespace ptrt
