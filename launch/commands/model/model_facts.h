// What a model file holds, and what each rank needs to run the model: the figures of `ptrt inspect`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model_io/file/model_file.h"
#include "runtime/job/placement.h"
#include "runtime/serving/memory_plan.h"

namespace ptrt {

struct Volume {
  std::int64_t parameters = 0;
  std::size_t bytes = 0;         // in the file
  std::size_t memory_bytes = 0;  // once loaded, on the CPU
};

// A dataset with elements, or scales, that are not finite.
struct NotFinite {
  std::string dataset;
  std::int64_t count = 0;
  std::vector<std::int64_t> first;  // FiniteScan::first()
  std::string what;                 // for people
};

struct ModelFacts {
  Volume shared;
  std::vector<Volume> tracks;
  std::map<std::string, std::int64_t> datasets_by_type;
  std::int64_t datasets = 0, in_panels = 0;
  std::vector<std::string> files;
  std::string tokenizer_kind, why_no_tokenizer;
  bool verified = false;                   // every dataset was read and checked
  std::vector<std::string> failed;         // if verified: how each dataset differs from its checksum
  std::vector<NotFinite> not_finite;       // likewise
  std::int64_t unsound = 0;                // datasets in either
  std::vector<std::string> unchecked;      // datasets without a checksum
  std::int64_t kv_elements_per_track = 0;  // of a token
  // On a GPU.
  std::optional<DType> matrices;  // their stored type, where it is one
  bool matrices_differ = false;
  DeviceTypes device_types;  // but for activations

  DeviceTypes on_device() const {
    DeviceTypes types = device_types;
    types.activations = activation_dtype_on_device(matrices_differ ? std::nullopt : matrices);
    return types;
  }
};

// Reads metadata only, or with `verify` all content. Throws bad_input where the file is not a whole model.
ModelFacts gather_facts(const ModelFile& model, bool verify);

Volume total(const ModelFacts& facts);
// Of a rank, once loaded.
std::size_t weight_bytes(const ModelFacts& facts, const Placement& rank);
std::size_t largest_weight_bytes(const ModelFacts& facts, std::int64_t world_size, std::int64_t tracks);
// Of a token, on a rank with so many tracks.
std::int64_t kv_bytes(const ModelFacts& facts, std::int64_t tracks, DType dtype);
// Of a rank on a GPU, with the default sizes of a step.
DeviceNeeds needs_on_device(const ModelConfig& config, const ModelFacts& facts, const Placement& rank);

std::vector<Placement> all_ranks(std::int64_t world_size, std::int64_t tracks);

}  // namespace ptrt
