#include "launch/session/model_identity.h"

#include <fmt/ranges.h>
#include <xxhash.h>

#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "launch/job/process.h"
#include "launch/session/agreement.h"

namespace ptrt {
namespace {

template <typename T>
std::string to_bytes(std::span<const T> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

template <typename T>
std::vector<T> from_bytes(const std::string& bytes) {
  PTRT_CHECK(bytes.size() % sizeof(T) == 0);
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

// What the ranks have of the model, each as digests.
struct RankDigests {
  bool alike = true;                    // ranks that have the same of the model have the same digest of it
  bool all = true;                      // what the caller asked of every rank holds
  std::optional<ContentDigests> model;  // where the ranks have all tracks
};

// `contents`: of whole datasets. Collective.
RankDigests exchange_digests(JobComm& job, const ModelConfig& config, const Placement& placement,
                             std::span<const DatasetContent> contents, bool holds) {
  std::vector<std::uint64_t> mine{holds, owner_digest(config, contents, 0),
                                  static_cast<std::uint64_t>(placement.first_track)};
  for (std::int64_t t = 0; t < placement.tracks; t++)
    mine.push_back(owner_digest(config, contents, static_cast<std::size_t>(placement.first_track + t) + 1));
  RankDigests found;
  std::map<std::size_t, std::uint64_t> owners;
  const auto add = [&](std::size_t owner, std::uint64_t digest) {
    found.alike &= owners.try_emplace(owner, digest).first->second == digest;
  };
  for (const std::string& text : job.all_gather(to_bytes(std::span<const std::uint64_t>(mine)))) {
    const auto theirs = from_bytes<std::uint64_t>(text);
    found.all &= theirs[0] != 0;
    add(0, theirs[1]);
    for (std::size_t t = 3; t < theirs.size(); t++) add(theirs[2] + t - 2, theirs[t]);
  }
  if (owners.size() != static_cast<std::size_t>(config.tracks) + 1) return found;
  found.model.emplace(ContentDigests{owners.at(0), {}});
  for (std::size_t t = 1; t < owners.size(); t++) found.model->tracks.push_back(owners.at(t));
  return found;
}

Facts facts_of(const ModelConfig& config, std::span<const DatasetContent> contents) {
  Facts facts;
  for (const DatasetContent& c : contents) {
    const auto type = to_string(static_cast<DType>(c.dtype));
    const char* layout = static_cast<WeightLayout>(c.layout) == WeightLayout::panels ? " in panels" : "";
    facts[dataset_path(config, c)] = c.has_recorded != 0
                                         ? fmt::format("{}{}, crc32c {:08x}", type, layout, c.recorded)
                                         : fmt::format("{}{} without crc32c", type, layout);
  }
  return facts;
}

}  // namespace

std::optional<ContentDigests> agree_on_recorded(JobComm& job, const ModelFile& file,
                                                const Placement& placement) {
  std::vector<DatasetContent> contents;
  all_or_none(job, [&] { contents = recorded_contents(file, placement.first_track, placement.tracks); });
  bool complete = true;
  for (const DatasetContent& content : contents) complete &= content.has_recorded != 0;
  RankDigests found = exchange_digests(job, file.config(), placement, contents, complete);
  if (!found.alike)
    throw_differences(job, "the weights that their files hold", facts_of(file.config(), contents), true);
  return found.all ? std::move(found.model) : std::nullopt;
}

ContentDigests agree_on_content(JobComm& job, const ModelFile& file, const Placement& placement,
                                std::span<const DatasetContent> contents) {
  bool whole = true;
  for (const DatasetContent& content : contents) whole &= content.part == DatasetContent::kWhole;
  const RankDigests found = exchange_digests(job, file.config(), placement, contents, whole);
  if (found.alike && found.all && found.model) return *found.model;

  const std::vector<std::string> names = rank_names(job);
  const auto texts = job.all_gather(to_bytes(contents));
  ContentDigests digests;
  all_or_none(job, [&] {
    if (job.rank() != 0) return;
    std::vector<RankContents> ranks;
    for (std::size_t r = 0; r < texts.size(); r++)
      ranks.push_back({names[r], from_bytes<DatasetContent>(texts[r])});
    digests = merge_contents(file, ranks);
    digests.tracks.insert(digests.tracks.begin(), digests.shared);
  });
  digests.tracks =
      from_bytes<std::uint64_t>(job.broadcast(to_bytes(std::span<const std::uint64_t>(digests.tracks))));
  digests.shared = digests.tracks.front();
  digests.tracks.erase(digests.tracks.begin());
  return digests;
}

std::string model_digest(const ModelRunOptions& options, const ModelSource& model, const RunPlan& plan,
                         const Backend& backend, const ContentDigests& content) {
  PTRT_CHECK(model.file);
  const TrackSplit split = plan.split();
  const std::string all = fmt::format(
      "2\n{}\n{}{}\n{}{} {} {} {}\n{:016x} {:016x}\n{}", to_json(model.config),
      options.int8_weights ? "int8" : "auto", split.ranks > 1 ? fmt::format(" over {}", split.ranks) : "",
      backend.traits().name, plan.device == Device::cuda ? fmt::format(" {}", to_string(options.fusion)) : "",
      plan.product_type(), to_string(plan.kv_dtype), backend.instruction_set(), content.shared,
      fmt::join(content.tracks, " "), model.tokenizer_text);
  return fmt::format("{:016x}", XXH3_64bits(all.data(), all.size()));
}

}  // namespace ptrt
