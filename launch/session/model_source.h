// The model of a run: a file, or a configuration that is given random weights.
#pragma once

#include <functional>
#include <initializer_list>
#include <optional>
#include <string>

#include "model_io/config/model_config.h"
#include "model_io/file/model_file.h"
#include "model_io/tokenizer/tokenizer.h"
#include "runtime/job/placement.h"

namespace ptrt {

struct ModelSource {
  std::optional<ModelFile> file;  // none with random weights
  ModelConfig config;
  TokenizerChoice tokenizer;
  std::string tokenizer_text;  // kind, size and digest of the file's tokenizer
  std::string chat_template;   // the file's; "": it has none

  // Calls look(spec, how it is stored) for the weights that a rank has; there are none without a file.
  void for_each_weight(const Placement& placement,
                       const std::function<void(const TensorSpec&, const StoredTensor&)>& look) const;
  // The stored type of all weights of these roles that a rank has; none where they differ.
  std::optional<DType> stored_type(const Placement& placement, std::initializer_list<WeightRole> roles) const;
  // The type in which a CPU keeps all matrices of a rank: float8 is widened; none where they differ.
  std::optional<DType> cpu_matrix_type(const Placement& placement) const;
  // Whether some matrix of a rank is stored in that type.
  bool has_matrix(const Placement& placement, DType type) const;
  // Whether the matrices are stored as CPU ranks keep them.
  bool has_panels() const;
};

// Opens the file, of which `known` may be read already, or reads only `random_config` where it is not empty.
// Throws bad_input.
ModelSource open_model(const std::string& file, bool trust_links, const ModelMetadata* known,
                       const std::string& random_config);

}  // namespace ptrt
