#include "launch/commands/model/model_facts.h"

#include <fmt/format.h>

#include <algorithm>

#include "launch/options/run_options.h"
#include "model_io/file/finite_scan.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"

namespace ptrt {
namespace {

// `reader`: of this dataset, where its content is to be verified; else null. `finite` is new, and of this
// dataset too.
void survey_dataset(const StoredDataset& stored, const std::string& type, DatasetReader* reader,
                    FiniteScan finite, ModelFacts& facts) {
  facts.datasets++;
  facts.datasets_by_type[type]++;
  if (!stored.crc32c) facts.unchecked.push_back(stored.name);
  if (reader == nullptr) return;
  reader->scan([&](std::size_t at, std::span<const std::byte> piece) { finite.add(at, piece); });
  const std::string what = reader->mismatch();
  if (!what.empty()) facts.failed.push_back(fmt::format("{}: {}", stored.name, what));
  if (finite.count() > 0)
    facts.not_finite.push_back(
        {stored.name, finite.count(), finite.first(), fmt::format("{}: {}", stored.name, finite.describe())});
  facts.unsound += !what.empty() || finite.count() > 0 ? 1 : 0;
}

void note_types(const TensorSpec& spec, DType stored, ModelFacts& facts) {
  facts.device_types.note(spec, stored);
  if (spec.role != WeightRole::matrix && spec.role != WeightRole::tied_embedding) return;
  facts.matrices_differ |= facts.matrices.value_or(stored) != stored;
  facts.matrices = stored;
}

// Of a tensor on the CPU; `bytes` in the file, scales included.
std::size_t memory_bytes(const TensorSpec& spec, const StoredTensor& stored, std::size_t bytes) {
  const auto elements = static_cast<std::size_t>(spec.elements());
  if (spec.role == WeightRole::vector) return elements * sizeof(float);
  return stored.dtype == DType::float8_e4m3 ? elements * size_of(stored.widened) : bytes;
}

Volume survey(const ModelFile& model, const std::vector<TensorSpec>& tensors, ModelFacts& facts) {
  Volume volume;
  for (const TensorSpec& spec : tensors) {
    const StoredTensor stored = model.stat(spec);
    note_types(spec, stored.dtype, facts);
    volume.parameters += spec.elements();
    const std::size_t bytes = stored.bytes + (stored.scales ? stored.scales->bytes : 0);
    volume.bytes += bytes;
    volume.memory_bytes += memory_bytes(spec, stored, bytes);
    facts.in_panels += stored.layout == WeightLayout::panels ? 1 : 0;
    const auto reader = facts.verified ? model.open(stored) : nullptr;
    survey_dataset(stored, std::string(to_string(stored.dtype)), reader ? &reader->content() : nullptr,
                   FiniteScan(stored), facts);
    if (stored.scales)
      survey_dataset(*stored.scales, stored.dtype == DType::int8 ? "int8 scales" : "float8 scales",
                     reader ? reader->scales() : nullptr, FiniteScan::of_scales(stored), facts);
  }
  return volume;
}

}  // namespace

ModelFacts gather_facts(const ModelFile& model, bool verify) {
  const ModelConfig& config = model.config();
  ModelFacts facts;
  facts.verified = verify;
  facts.files.push_back(model.path());
  facts.shared = survey(model, shared_tensors(config), facts);
  for (std::int64_t track = 0; track < config.tracks; ++track) {
    facts.tracks.push_back(survey(model, track_tensors(config, track), facts));
    const std::string file = model.track_file(track);
    if (std::ranges::find(facts.files, file) == facts.files.end()) facts.files.push_back(file);
  }
  const TokenizerBlob blob = model.tokenizer();
  facts.tokenizer_kind = blob.kind;
  facts.why_no_tokenizer = make_tokenizer(blob, config).why_none;
  facts.kv_elements_per_track = config.layers * 2 * config.kv_heads * config.head_dim;
  return facts;
}

Volume total(const ModelFacts& facts) {
  Volume sum = facts.shared;
  for (const Volume& track : facts.tracks) {
    sum.parameters += track.parameters;
    sum.bytes += track.bytes;
    sum.memory_bytes += track.memory_bytes;
  }
  return sum;
}

std::size_t weight_bytes(const ModelFacts& facts, const Placement& rank) {
  std::size_t bytes = facts.shared.memory_bytes;
  for (std::int64_t i = 0; i < rank.tracks; ++i)
    bytes += facts.tracks[static_cast<std::size_t>(rank.first_track + i)].memory_bytes;
  return bytes;
}

std::size_t largest_weight_bytes(const ModelFacts& facts, std::int64_t world_size, std::int64_t tracks) {
  std::size_t largest = 0;
  for (const Placement& rank : all_ranks(world_size, tracks))
    largest = std::max(largest, weight_bytes(facts, rank));
  return largest;
}

std::int64_t kv_bytes(const ModelFacts& facts, std::int64_t tracks, DType dtype) {
  return tracks * facts.kv_elements_per_track * static_cast<std::int64_t>(size_of(dtype));
}

DeviceNeeds needs_on_device(const ModelConfig& config, const ModelFacts& facts, const Placement& rank) {
  const ModelRunOptions defaults;
  return device_needs(config, rank, facts.on_device(), defaults.max_batch, defaults.max_step_rows());
}

std::vector<Placement> all_ranks(std::int64_t world_size, std::int64_t tracks) {
  std::vector<Placement> ranks;
  for (std::int64_t rank = 0; rank < world_size; ++rank)
    ranks.push_back(make_placement(world_size, rank, tracks));
  return ranks;
}

}  // namespace ptrt
