// `ptrt inspect`: what a model file holds and what it takes to run it.
//
// --json prints one object:
//   file, format_version, config      as in the file
//   parameters                        {shared, per_track, total}
//   bytes                             {shared, tracks: [one a track], total} of tensor data in the file
//   datasets                          {total, by_type: {float32: n, ..., int8: n, "int8 scales": n},
//                                       in_panels: n, the others are rows}
//   files                             [{path, bytes}], the main one first
//   tokenizer                         {kind (null: none), usable, why_not}
//   checksums                         {present, absent, verified (--verify was given), failed: [..],
//   unchecked: [..]}
//   kv_bytes_per_token_per_track      {float32, bfloat16}: what --kv-dtype chooses between
//   device_dtype                      of matrices, activations, keys and values on a GPU: bfloat16 or float16
//   placements                        [{ranks, tracks_per_rank, weight_bytes_per_rank,
//                                       kv_bytes_per_token_per_rank: {float32, bfloat16}}]
//                                     for one replica, every number of ranks that fits
//   ranks                             [{rank, replica, first_track, tracks, weight_bytes, device}] over
//   --ranks
//                                     (default: a rank a track); device: {weight_bytes, kv_bytes_per_token,
//                                     scratch_bytes} if it ran on a GPU with the default --max-batch and
//                                     --max-step-tokens
// weight_bytes are those held in memory (norm weights as float32); of ranks that differ, the largest.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "launch/options/commands.h"
#include "model_io/file/model_file.h"
#include "model_io/tokenizer/tokenizer.h"
#include "runtime/comm/placement.h"
#include "runtime/serving/memory_plan.h"

namespace ptrt {
namespace {

using nlohmann::ordered_json;

struct Volume {
  std::int64_t parameters = 0;
  std::size_t bytes = 0;         // in the file
  std::size_t memory_bytes = 0;  // once loaded
};

struct Facts {
  Volume shared;
  std::vector<Volume> tracks;
  std::map<std::string, std::int64_t> datasets_by_type;
  std::int64_t datasets = 0, in_panels = 0;
  std::vector<std::string> files;
  std::string tokenizer_kind, why_no_tokenizer;
  std::vector<std::string> failed;     // with --verify: what is wrong with each dataset that does not match
  std::vector<std::string> unchecked;  // datasets without a checksum
  std::int64_t kv_elements_per_track = 0;  // a token
  // On a GPU.
  std::optional<DType> matrices;  // stored type of those so far, while they are of one
  bool matrices_differ = false;
  DType embedding = DType::bfloat16;

  DeviceTypes on_device() const {
    return {inner_type_on_device(matrices_differ ? std::nullopt : matrices), embedding};
  }
};

// With `verify_content`, `reader` is one of the dataset.
void survey_dataset(const StoredDataset& stored, const std::string& type, DatasetReader* reader,
                    Facts& facts) {
  facts.datasets++;
  facts.datasets_by_type[type]++;
  if (!stored.crc32c) facts.unchecked.push_back(stored.name);
  if (reader == nullptr) return;
  reader->scan();
  if (const std::string what = reader->mismatch(); !what.empty())
    facts.failed.push_back(fmt::format("{}: {}", stored.name, what));
}

Volume survey(const ModelFile& model, const std::vector<TensorSpec>& tensors, bool verify_content,
              Facts& facts) {
  Volume volume;
  for (const TensorSpec& spec : tensors) {
    const StoredTensor stored = model.stat(spec);
    if (spec.role == WeightRole::embedding) facts.embedding = stored.dtype;
    if (spec.role == WeightRole::matrix || spec.role == WeightRole::tied_embedding) {
      facts.matrices_differ |= facts.matrices.value_or(stored.dtype) != stored.dtype;
      facts.matrices = stored.dtype;
    }
    volume.parameters += spec.elements();
    const std::size_t bytes = stored.bytes + (stored.scales ? stored.scales->bytes : 0);
    volume.bytes += bytes;
    volume.memory_bytes +=
        spec.role == WeightRole::vector ? static_cast<std::size_t>(spec.elements()) * sizeof(float) : bytes;
    facts.in_panels += stored.layout == WeightLayout::panels ? 1 : 0;
    const auto reader = verify_content ? model.open(stored) : nullptr;
    survey_dataset(stored, std::string(to_string(stored.dtype)), reader ? &reader->content() : nullptr,
                   facts);
    if (stored.scales)
      survey_dataset(*stored.scales, "int8 scales", reader ? reader->scales() : nullptr, facts);
  }
  return volume;
}

Facts gather(const ModelFile& model, bool verify_content) {
  const ModelConfig& config = model.config();
  Facts facts;
  facts.files.push_back(model.path());
  facts.shared = survey(model, shared_tensors(config), verify_content, facts);
  for (std::int64_t track = 0; track < config.tracks; ++track) {
    facts.tracks.push_back(survey(model, track_tensors(config, track), verify_content, facts));
    const std::string file = model.track_file(track);
    if (std::find(facts.files.begin(), facts.files.end(), file) == facts.files.end())
      facts.files.push_back(file);
  }
  const TokenizerBlob blob = model.tokenizer();
  facts.tokenizer_kind = blob.kind;
  facts.why_no_tokenizer = make_tokenizer(blob, config).why_none;
  facts.kv_elements_per_track = config.layers * 2 * config.kv_heads * config.head_dim;
  return facts;
}

Volume total(const Facts& facts) {
  Volume sum = facts.shared;
  for (const Volume& track : facts.tracks) {
    sum.parameters += track.parameters;
    sum.bytes += track.bytes;
    sum.memory_bytes += track.memory_bytes;
  }
  return sum;
}

std::size_t weight_bytes(const Facts& facts, const Placement& placement) {
  std::size_t bytes = facts.shared.memory_bytes;
  for (std::int64_t i = 0; i < placement.tracks; ++i)
    bytes += facts.tracks[static_cast<std::size_t>(placement.first_track + i)].memory_bytes;
  return bytes;
}

// Of a token, on a rank with so many tracks.
std::int64_t kv_bytes(const Facts& facts, std::int64_t tracks, DType dtype) {
  return tracks * facts.kv_elements_per_track * static_cast<std::int64_t>(size_of(dtype));
}

// Of a rank on a GPU, with the default sizes of a step.
DeviceNeeds needs_on_device(const ModelConfig& config, const Facts& facts, const Placement& rank) {
  const ModelRunOptions defaults;
  return device_needs(config, rank.first_track, rank.tracks, facts.on_device(), defaults.max_batch,
                      std::max(defaults.max_step_tokens, defaults.max_batch));
}

std::vector<Placement> all_ranks(std::int64_t world_size, std::int64_t tracks) {
  std::vector<Placement> ranks;
  for (std::int64_t rank = 0; rank < world_size; ++rank)
    ranks.push_back(make_placement(world_size, rank, tracks));
  return ranks;
}

std::size_t largest_weight_bytes(const Facts& facts, std::int64_t world_size, std::int64_t tracks) {
  std::size_t largest = 0;
  for (const Placement& rank : all_ranks(world_size, tracks))
    largest = std::max(largest, weight_bytes(facts, rank));
  return largest;
}

// ---- as JSON

ordered_json tokenizer_json(const Facts& facts) {
  ordered_json result;
  result["kind"] = facts.tokenizer_kind.empty() ? ordered_json(nullptr) : ordered_json(facts.tokenizer_kind);
  result["usable"] = facts.why_no_tokenizer.empty();
  result["why_not"] =
      facts.why_no_tokenizer.empty() ? ordered_json(nullptr) : ordered_json(facts.why_no_tokenizer);
  return result;
}

ordered_json kv_bytes_json(const Facts& facts, std::int64_t tracks) {
  ordered_json bytes;
  for (const DType dtype : {DType::float32, DType::bfloat16})
    bytes[std::string(to_string(dtype))] = kv_bytes(facts, tracks, dtype);
  return bytes;
}

ordered_json placements_json(const Facts& facts, std::int64_t tracks) {
  ordered_json result = ordered_json::array();
  for (const std::int64_t ranks : packed_sizes(tracks))
    result.push_back({{"ranks", ranks},
                      {"tracks_per_rank", tracks / ranks},
                      {"weight_bytes_per_rank", largest_weight_bytes(facts, ranks, tracks)},
                      {"kv_bytes_per_token_per_rank", kv_bytes_json(facts, tracks / ranks)}});
  return result;
}

ordered_json to_json(const ModelFile& model, const Facts& facts, const std::vector<Placement>& ranks,
                     bool verified) {
  const Volume sum = total(facts);
  ordered_json result;
  result["file"] = model.path();
  result["format_version"] = 1;
  result["config"] = ordered_json::parse(to_json(model.config()));
  result["parameters"] = {{"shared", facts.shared.parameters},
                          {"per_track", facts.tracks[0].parameters},
                          {"total", sum.parameters}};
  ordered_json track_bytes = ordered_json::array();
  for (const Volume& track : facts.tracks) track_bytes.push_back(track.bytes);
  result["bytes"] = {{"shared", facts.shared.bytes}, {"tracks", track_bytes}, {"total", sum.bytes}};
  result["datasets"] = {
      {"total", facts.datasets}, {"by_type", facts.datasets_by_type}, {"in_panels", facts.in_panels}};
  result["files"] = ordered_json::array();
  for (const std::string& file : facts.files)
    result["files"].push_back({{"path", file}, {"bytes", std::filesystem::file_size(file)}});
  result["tokenizer"] = tokenizer_json(facts);
  const auto absent = static_cast<std::int64_t>(facts.unchecked.size());
  result["checksums"] = {{"present", facts.datasets - absent},
                         {"absent", absent},
                         {"verified", verified},
                         {"failed", facts.failed},
                         {"unchecked", facts.unchecked}};
  result["kv_bytes_per_token_per_track"] = kv_bytes_json(facts, 1);
  result["device_dtype"] = to_string(facts.on_device().inner);
  result["placements"] = placements_json(facts, model.config().tracks);
  result["ranks"] = ordered_json::array();
  for (const Placement& rank : ranks) {
    const DeviceNeeds needs = needs_on_device(model.config(), facts, rank);
    result["ranks"].push_back({{"rank", rank.rank},
                               {"replica", rank.replica},
                               {"first_track", rank.first_track},
                               {"tracks", rank.tracks},
                               {"weight_bytes", weight_bytes(facts, rank)},
                               {"device",
                                {{"weight_bytes", needs.weights},
                                 {"kv_bytes_per_token", needs.kv_page / kPageTokens},
                                 {"scratch_bytes", needs.scratch}}}});
  }
  return result;
}

// ---- as text

std::string with_unit(std::size_t bytes) {
  return with_byte_unit(static_cast<std::int64_t>(bytes));
}

template <typename... Args>
void print_row(const char* label, fmt::format_string<Args...> format, Args&&... args) {
  fmt::print("{:<12} {}\n", label, fmt::format(format, std::forward<Args>(args)...));
}

void print_config(const ModelConfig& config) {
  print_row("tracks", "{} of {} layers, sync after {}", config.tracks, config.layers,
            fmt::join(config.sync_layers, ", "));
  print_row("a track", "hidden {}, heads {} of {} ({} KV), FFN {}{}", config.hidden_size, config.heads,
            config.head_dim, config.kv_heads, config.ffn_size,
            config.moe ? fmt::format(", {} experts of {}, top {}", config.moe->experts, config.moe->ffn_size,
                                     config.moe->top_k)
                       : "");
  print_row("vocabulary", "{}, {} embeddings; context {}", config.vocab_size,
            config.tie_embeddings ? "tied" : "untied", config.max_context);
  print_row("config", "{}", to_json(config));
}

void print_sizes(const Facts& facts) {
  const Volume sum = total(facts);
  print_row("parameters", "{} = {} shared + {} x {} a track", sum.parameters, facts.shared.parameters,
            facts.tracks.size(), facts.tracks[0].parameters);
  std::string types;
  for (const auto& [type, count] : facts.datasets_by_type)
    types += fmt::format("{}{} {}", types.empty() ? "" : ", ", count, type);
  if (facts.in_panels > 0) types += fmt::format("; {} in panels, which CPU ranks map", facts.in_panels);
  print_row("weights", "{} ({} shared, {} the first track); {} datasets: {}", with_unit(sum.bytes),
            with_unit(facts.shared.bytes), with_unit(facts.tracks[0].bytes), facts.datasets, types);
  for (const std::string& file : facts.files)
    print_row("file", "{} ({})", file, with_unit(std::filesystem::file_size(file)));
}

void print_checks(const Facts& facts, bool verified) {
  print_row("tokenizer", "{}{}", facts.tokenizer_kind.empty() ? "none" : facts.tokenizer_kind,
            facts.why_no_tokenizer.empty() ? "" : ": " + facts.why_no_tokenizer);
  const std::size_t absent = facts.unchecked.size();
  print_row("checksums", "{} of {} datasets have one; {}", static_cast<std::size_t>(facts.datasets) - absent,
            facts.datasets,
            !verified ? "not verified (--verify reads and checks them)"
                      : fmt::format("{} verified: {} do not match", facts.datasets, facts.failed.size()));
  if (!verified) return;
  for (const std::string& dataset : facts.unchecked) print_row("", "no checksum: {}", dataset);
}

void print_placement(const ModelConfig& config, const Facts& facts, const std::vector<Placement>& ranks) {
  const std::int64_t tracks = config.tracks;
  fmt::print("\n{:>6} {:>12} {:>16} {:>28}\n", "ranks", "tracks/rank", "weights/rank", "KV bytes/token/rank");
  for (const std::int64_t n : packed_sizes(tracks))
    fmt::print("{:>6} {:>12} {:>16} {:>28}\n", n, tracks / n,
               with_unit(largest_weight_bytes(facts, n, tracks)),
               fmt::format("{} ({} bfloat16)", kv_bytes(facts, tracks / n, DType::float32),
                           kv_bytes(facts, tracks / n, DType::bfloat16)));
  fmt::print("Multiples of {} ranks serve replicas of one rank a track.\n\n", tracks);
  fmt::print("{:>6} {:>8} {:>12} {:>16} {:>16} {:>14} {:>14}\n", "rank", "replica", "tracks", "weights",
             fmt::format("GPU ({})", to_string(facts.on_device().inner)), "KV/token", "scratch");
  for (const Placement& rank : ranks) {
    const DeviceNeeds needs = needs_on_device(config, facts, rank);
    fmt::print("{:>6} {:>8} {:>12} {:>16} {:>16} {:>14} {:>14}\n", rank.rank, rank.replica,
               rank.tracks == 1 ? fmt::format("{}", rank.first_track)
                                : fmt::format("{}-{}", rank.first_track, rank.first_track + rank.tracks - 1),
               with_unit(weight_bytes(facts, rank)), with_byte_unit(needs.weights),
               with_byte_unit(needs.kv_page / kPageTokens), with_byte_unit(needs.scratch));
  }
}

}  // namespace

void run_inspect(const InspectOptions& options) {
  const ModelFile model(options.model);
  const ModelConfig& config = model.config();
  const std::int64_t world_size = options.ranks.value_or(static_cast<int>(config.tracks));
  if (world_size < 1) throw_bad_input("--ranks: expected 1 or more, found {}", world_size);
  const std::vector<Placement> ranks = all_ranks(world_size, config.tracks);
  const Facts facts = gather(model, options.verify);
  if (options.json) {
    fmt::print("{}\n", to_json(model, facts, ranks, options.verify).dump());
  } else {
    print_row("model", "{}", config.name);
    print_config(config);
    print_sizes(facts);
    print_checks(facts, options.verify);
    print_placement(config, facts, ranks);
  }
  std::fflush(stdout);
  if (!facts.failed.empty())
    throw_bad_input("{}: {} of {} datasets are damaged:\n  {}", model.path(), facts.failed.size(),
                    facts.datasets, fmt::join(facts.failed, "\n  "));
}

}  // namespace ptrt
