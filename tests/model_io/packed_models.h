// Models of every type, and the same in panels.
#pragma once

#include <string>

#include "model_fixture.h"
#include "model_io/file/tensor_copy.h"

namespace ptrt {

inline void rewrite(const std::string& from, const std::string& to, WeightLayout layout, bool split = false) {
  const ModelFile model(from);
  ModelWriter writer(to, model.config(), split, layout == WeightLayout::panels ? kMapAlignment : 1);
  TensorCopy copy(model, writer, TensorCopy::NotFinite::keep);
  for (const TensorSpec& spec : model_tensors(model.config())) copy.copy(spec, model.stat(spec), layout);
  writer.write_tokenizer(model.tokenizer());
  writer.commit();
}

inline void write_typed(const std::string& path, const ModelConfig& config, DType dtype) {
  if (size_of(dtype) == 1) return write_scaled_model(path, config, 8, dtype);
  write_model(path, config, 8, dtype);
}

// Two tracks that two ranks can share, at columns that lie within a pair of groups; where ranks take whole
// rows, those do not fill their last group.
inline ModelConfig for_two_ranks() {
  return small_config(
      {{"hidden_size", 232},
       {"head_dim", 32},
       {"ffn_size", 320},
       {"vocab_size", 1003},
       {"moe", {{"experts", 3}, {"top_k", 2}, {"ffn_size", 64}, {"router_logit_cap", nullptr}}}});
}

}  // namespace ptrt
