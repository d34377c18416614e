#include "launch/commands/model/inspect_json.h"

#include <string>

#include "kernels/base/files.h"

namespace ptrt {
namespace {

using nlohmann::ordered_json;

ordered_json text_or_null(const std::string& text) {
  return text.empty() ? ordered_json(nullptr) : ordered_json(text);
}

ordered_json bytes_json(const ModelFacts& facts, std::size_t all) {
  ordered_json tracks = ordered_json::array();
  for (const Volume& track : facts.tracks) tracks.push_back(track.bytes);
  return {{"shared", facts.shared.bytes}, {"tracks", tracks}, {"total", all}};
}

ordered_json files_json(const ModelFacts& facts) {
  ordered_json result = ordered_json::array();
  for (const std::string& file : facts.files) result.push_back({{"path", file}, {"bytes", file_bytes(file)}});
  return result;
}

ordered_json checksums_json(const ModelFacts& facts) {
  const auto absent = static_cast<std::int64_t>(facts.unchecked.size());
  return {{"present", facts.datasets - absent},
          {"absent", absent},
          {"verified", facts.verified},
          {"failed", facts.failed},
          {"unchecked", facts.unchecked}};
}

ordered_json not_finite_json(const ModelFacts& facts) {
  ordered_json result = ordered_json::array();
  for (const NotFinite& dataset : facts.not_finite)
    result.push_back({{"dataset", dataset.dataset}, {"count", dataset.count}, {"first", dataset.first}});
  return result;
}

ordered_json kv_bytes_json(const ModelFacts& facts, std::int64_t tracks) {
  ordered_json bytes;
  for (const DType dtype : {DType::float32, DType::bfloat16})
    bytes[std::string(to_string(dtype))] = kv_bytes(facts, tracks, dtype);
  return bytes;
}

ordered_json placements_json(const ModelFacts& facts, std::int64_t tracks) {
  ordered_json result = ordered_json::array();
  for (const std::int64_t ranks : packed_sizes(tracks))
    result.push_back({{"ranks", ranks},
                      {"tracks_per_rank", tracks / ranks},
                      {"weight_bytes_per_rank", largest_weight_bytes(facts, ranks, tracks)},
                      {"kv_bytes_per_token_per_rank", kv_bytes_json(facts, tracks / ranks)}});
  return result;
}

ordered_json ranks_json(const ModelConfig& config, const ModelFacts& facts,
                        const std::vector<Placement>& ranks) {
  ordered_json result = ordered_json::array();
  for (const Placement& rank : ranks) {
    const DeviceNeeds needs = needs_on_device(config, facts, rank);
    result.push_back({{"rank", rank.rank},
                      {"replica", rank.replica},
                      {"first_track", rank.first_track},
                      {"tracks", rank.tracks},
                      {"weight_bytes", weight_bytes(facts, rank)},
                      {"device",
                       {{"weight_bytes", needs.weights},
                        {"kv_bytes_per_token", needs.kv_page / kPageTokens},
                        {"scratch_bytes", needs.scratch},
                        {"sum_bytes", needs.sums}}}});
  }
  return result;
}

}  // namespace

ordered_json inspect_json(const ModelFile& model, const ModelFacts& facts,
                          const std::vector<Placement>& ranks) {
  const Volume sum = total(facts);
  ordered_json result;
  result["file"] = model.path();
  result["format_version"] = 1;
  result["config"] = ordered_json::parse(to_json(model.config()));
  result["parameters"] = {{"shared", facts.shared.parameters},
                          {"per_track", facts.tracks[0].parameters},
                          {"total", sum.parameters}};
  result["bytes"] = bytes_json(facts, sum.bytes);
  result["datasets"] = {
      {"total", facts.datasets}, {"by_type", facts.datasets_by_type}, {"in_panels", facts.in_panels}};
  result["files"] = files_json(facts);
  result["tokenizer"] = {{"kind", text_or_null(facts.tokenizer_kind)},
                         {"usable", facts.why_no_tokenizer.empty()},
                         {"why_not", text_or_null(facts.why_no_tokenizer)}};
  result["checksums"] = checksums_json(facts);
  result["not_finite"] = facts.verified ? not_finite_json(facts) : ordered_json(nullptr);
  result["kv_bytes_per_token_per_track"] = kv_bytes_json(facts, 1);
  result["device_dtype"] = to_string(facts.on_device().activations);
  result["placements"] = placements_json(facts, model.config().tracks);
  result["ranks"] = ranks_json(model.config(), facts, ranks);
  return result;
}

}  // namespace ptrt
