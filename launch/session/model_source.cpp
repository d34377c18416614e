#include "launch/session/model_source.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>

#include "kernels/base/files.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"

namespace ptrt {

void ModelSource::for_each_weight(const Placement& placement,
                                  const std::function<void(const TensorSpec&, DType)>& look) const {
  if (!file) return;
  const auto look_at = [&](const std::vector<TensorSpec>& tensors) {
    for (const TensorSpec& spec : tensors) look(spec, file->stat(spec).dtype);
  };
  look_at(shared_tensors(config));
  for (std::int64_t t = 0; t < placement.tracks; t++)
    look_at(track_tensors(config, placement.first_track + t));
}

std::optional<DType> ModelSource::stored_type(const Placement& placement,
                                              std::initializer_list<WeightRole> roles) const {
  if (!file) return DType::bfloat16;  // random weights
  std::optional<DType> type;
  bool same = true;
  for_each_weight(placement, [&](const TensorSpec& spec, DType found) {
    if (std::ranges::find(roles, spec.role) == roles.end()) return;
    same &= type.value_or(found) == found;
    type = found;
  });
  return same ? type : std::nullopt;
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
