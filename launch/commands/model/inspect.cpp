// `ptrt inspect`: what a model file holds and what it takes to run it.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/files.h"
#include "launch/commands/model/inspect_json.h"
#include "launch/commands/model/model_commands.h"
#include "launch/commands/model/model_facts.h"
#include "launch/job/report_files.h"
#include "launch/job/standard_streams.h"

namespace ptrt {
namespace {

std::string with_unit(std::size_t bytes) {
  return with_byte_unit(static_cast<std::int64_t>(bytes));
}

template <typename... Args>
void print_row(const char* label, fmt::format_string<Args...> format, Args&&... args) {
  print_out("{:<12} {}\n", label, fmt::format(format, std::forward<Args>(args)...));
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

void print_sizes(const ModelFacts& facts) {
  const Volume sum = total(facts);
  print_row("parameters", "{} = {} shared + {} x {} a track", sum.parameters, facts.shared.parameters,
            facts.tracks.size(), facts.tracks[0].parameters);
  std::string types;
  for (const auto& [type, count] : facts.datasets_by_type)
    types += fmt::format("{}{} {}", types.empty() ? "" : ", ", count, type);
  if (facts.in_panels > 0) types += fmt::format("; {} in panels, which CPU ranks map", facts.in_panels);
  print_row("weights", "{} ({} shared, {} the first track); {} datasets: {}", with_unit(sum.bytes),
            with_unit(facts.shared.bytes), with_unit(facts.tracks[0].bytes), facts.datasets, types);
  for (const std::string& file : facts.files) print_row("file", "{} ({})", file, with_unit(file_bytes(file)));
}

void print_checks(const ModelFacts& facts) {
  print_row("tokenizer", "{}{}", facts.tokenizer_kind.empty() ? "none" : facts.tokenizer_kind,
            facts.why_no_tokenizer.empty() ? "" : ": " + facts.why_no_tokenizer);
  const std::size_t absent = facts.unchecked.size();
  print_row("checksums", "{} of {} datasets have one; {}", static_cast<std::size_t>(facts.datasets) - absent,
            facts.datasets,
            !facts.verified ? "not verified (--verify reads and checks them)"
                            : fmt::format("{} verified: {} do not match, {} are not finite", facts.datasets,
                                          facts.failed.size(), facts.not_finite.size()));
  if (!facts.verified) return;
  for (const std::string& dataset : facts.unchecked) print_row("", "no checksum: {}", dataset);
}

// Throws where --verify found something.
void report_unsound(const ModelFile& model, const ModelFacts& facts) {
  if (facts.unsound == 0) return;
  std::vector<std::string> lines = facts.failed;
  for (const NotFinite& dataset : facts.not_finite) lines.push_back(dataset.what);
  throw_bad_input("{}: {} of {} datasets are {}:\n  {}", model.path(), facts.unsound, facts.datasets,
                  facts.not_finite.empty() ? "damaged"
                  : facts.failed.empty()   ? "not finite"
                                           : "damaged or not finite",
                  fmt::join(lines, "\n  "));
}

void print_placements(const ModelFacts& facts, std::int64_t tracks) {
  print_out("\n{:>6} {:>12} {:>16} {:>28}\n", "ranks", "tracks/rank", "weights/rank", "KV bytes/token/rank");
  for (const std::int64_t n : packed_sizes(tracks))
    print_out("{:>6} {:>12} {:>16} {:>28}\n", n, tracks / n,
              with_unit(largest_weight_bytes(facts, n, tracks)),
              fmt::format("{} ({} bfloat16)", kv_bytes(facts, tracks / n, DType::float32),
                          kv_bytes(facts, tracks / n, DType::bfloat16)));
  print_out("Multiples of {} ranks serve replicas of one rank a track.\n\n", tracks);
}

void print_ranks(const ModelConfig& config, const ModelFacts& facts, const std::vector<Placement>& ranks) {
  print_out("{:>6} {:>8} {:>12} {:>16} {:>16} {:>14} {:>14} {:>12}\n", "rank", "replica", "tracks", "weights",
            fmt::format("GPU ({})", to_string(facts.on_device().activations)), "KV/token", "scratch", "sums");
  for (const Placement& rank : ranks) {
    const DeviceNeeds needs = needs_on_device(config, facts, rank);
    print_out("{:>6} {:>8} {:>12} {:>16} {:>16} {:>14} {:>14} {:>12}\n", rank.rank, rank.replica,
              rank.tracks == 1 ? fmt::format("{}", rank.first_track)
                               : fmt::format("{}-{}", rank.first_track, rank.first_track + rank.tracks - 1),
              with_unit(weight_bytes(facts, rank)), with_byte_unit(needs.weights),
              with_byte_unit(needs.kv_page / kPageTokens), with_byte_unit(needs.scratch),
              with_byte_unit(needs.sums));
  }
}

}  // namespace

void run_inspect(const InspectOptions& options, const ModelMetadata* known) {
  const ModelFile model(options.model, options.trust_links, known);
  const ModelConfig& config = model.config();
  const std::int64_t world_size = options.ranks.value_or(static_cast<int>(config.tracks));
  const std::vector<Placement> ranks = all_ranks(world_size, config.tracks);
  const ModelFacts facts = gather_facts(model, options.verify);
  if (options.json) {
    print_out("{}\n", json_text(inspect_json(model, facts, ranks)));
  } else {
    print_row("model", "{}", config.name);
    print_config(config);
    print_sizes(facts);
    print_checks(facts);
    print_placements(facts, config.tracks);
    print_ranks(config, facts, ranks);
  }
  report_unsound(model, facts);
}

}  // namespace ptrt
