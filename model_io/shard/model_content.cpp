#include "model_io/shard/model_content.h"

#include <fmt/ranges.h>
#include <xxhash.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "kernels/base/error.h"
#include "model_io/config/tensor_names.h"

namespace ptrt {
namespace {

std::vector<TensorSpec> tensors_of(const ModelConfig& config, std::size_t owner) {
  return owner == 0 ? shared_tensors(config) : track_tensors(config, static_cast<std::int64_t>(owner) - 1);
}

std::string path_among(const std::vector<TensorSpec>& tensors, const DatasetContent& content) {
  const TensorSpec& spec = tensors.at(content.dataset / 2);
  return content.dataset % 2 == 0 ? spec.path : scale_path(spec);
}

// One dataset, joined from what the ranks have of it.
class Joined {
 public:
  void add(const std::string& rank, const DatasetContent& content) {
    if (content.shared == 0) ranks_.push_back(rank);
    auto& places = content.shared == 0 ? parts_ : shared_;
    const auto [place, added] = places.try_emplace(content.part, rank, content);
    if (added) return;
    const auto& [first, known] = place->second;
    if (!stored_alike(known, content)) other_file_ = {first, rank};
    if (known.crc != content.crc) other_content_ = {first, rank};
  }

  const DatasetContent& any() const { return parts_.begin()->second.second; }

  // The whole of it. `name` gives the beginning of messages.
  template <typename Name>
  DatasetContent whole(const Name& name) const {
    DatasetContent all = any();
    all.crc = 0, all.bytes = 0, all.part = DatasetContent::kWhole;
    auto other_file = other_file_;
    for (const auto& [number, part] : parts_) {
      const auto& [rank, content] = part;
      if (!stored_alike(any(), content)) other_file = {parts_.begin()->second.first, rank};
      all.crc ^= content.crc;
      all.bytes += content.bytes;
    }
    if (other_file)
      throw_bad_input("{}: it is stored differently in the files of {} and {}", name(), other_file->first,
                      other_file->second);
    if (other_content_)
      throw_bad_input("{}: {} and {} read different content: their files differ, or one is damaged", name(),
                      other_content_->first, other_content_->second);
    if (all.bytes != all.total)
      throw_failure("internal error: {}: {} read {} of its {} bytes", name(), readers(), all.bytes,
                    all.total);
    if (all.has_recorded != 0 && all.crc != all.recorded)
      throw_bad_input(
          "{}: expected crc32c {:08x}, found {:08x} in the parts that {} read: the data is damaged", name(),
          all.recorded, all.crc, readers());
    return all;
  }

 private:
  using TwoRanks = std::optional<std::pair<std::string, std::string>>;

  // Also whether both are parts, or both the whole.
  static bool stored_alike(const DatasetContent& a, const DatasetContent& b) {
    const auto facts = [](const DatasetContent& c) {
      return std::tuple(c.dtype, c.layout, c.total, c.has_recorded, c.recorded,
                        c.part == DatasetContent::kWhole);
    };
    return facts(a) == facts(b);
  }

  std::string readers() const {
    constexpr std::size_t kNamed = 8;
    const auto named = std::span(ranks_).first(std::min(kNamed, ranks_.size()));
    return fmt::format("{}{}", fmt::join(named, ", "), ranks_.size() > kNamed ? ", …" : "");
  }

  std::vector<std::string> ranks_;
  // By part or place, with the first rank that has it.
  std::map<std::uint64_t, std::pair<std::string, DatasetContent>> parts_, shared_;
  TwoRanks other_file_, other_content_;
};

}  // namespace

DatasetContent content_of(std::size_t owner, std::size_t tensor, bool scales, const StoredTensor& stored,
                          std::optional<std::uint32_t> recorded) {
  return {.owner = static_cast<std::uint32_t>(owner),
          .dataset = static_cast<std::uint32_t>(2 * tensor + (scales ? 1 : 0)),
          .recorded = recorded.value_or(0),
          .has_recorded = recorded.has_value(),
          .dtype = static_cast<std::uint8_t>(stored.dtype),
          .layout = static_cast<std::uint8_t>(stored.layout)};
}

std::uint64_t part_number(const TensorPart& part) {
  return static_cast<std::uint64_t>(part.first_row) << 32 | static_cast<std::uint64_t>(part.first_column);
}

std::vector<DatasetContent> recorded_contents(const ModelFile& file, std::int64_t first_track,
                                              std::int64_t tracks) {
  std::vector<DatasetContent> contents;
  const auto add = [&](std::size_t owner, std::size_t tensor, bool scales, const StoredTensor& stored,
                       const StoredDataset& dataset) {
    DatasetContent content = content_of(owner, tensor, scales, stored, dataset.crc32c);
    content.crc = content.recorded;
    content.bytes = content.total = dataset.bytes;
    contents.push_back(content);
  };
  const auto add_owner = [&](std::size_t owner) {
    const std::vector<TensorSpec> tensors = tensors_of(file.config(), owner);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const StoredTensor stored = file.stat(tensors[i]);
      add(owner, i, false, stored, stored);
      if (stored.scales) add(owner, i, true, stored, *stored.scales);
    }
  };
  add_owner(0);
  for (std::int64_t t = 0; t < tracks; ++t) add_owner(static_cast<std::size_t>(first_track + t) + 1);
  return contents;
}

std::string dataset_path(const ModelConfig& config, const DatasetContent& content) {
  return path_among(tensors_of(config, content.owner), content);
}

std::uint64_t owner_digest(const ModelConfig& config, std::span<const DatasetContent> contents,
                           std::size_t owner) {
  const std::vector<TensorSpec> tensors = tensors_of(config, owner);
  std::uint64_t digest = 0;
  for (const DatasetContent& content : contents) {
    if (content.owner != owner || content.again != 0 || content.shared != 0) continue;
    const std::string path = path_among(tensors, content);
    const std::uint64_t fields[] = {digest, content.crc,
                                    static_cast<std::uint64_t>(content.dtype) << 8 | content.layout};
    digest = XXH3_64bits_withSeed(path.data(), path.size(), XXH3_64bits(fields, sizeof(fields)));
  }
  return digest;
}

ContentDigests merge_contents(const ModelFile& file, std::span<const RankContents> ranks) {
  const ModelConfig& config = file.config();
  std::map<std::tuple<std::uint32_t, std::uint32_t, std::uint8_t>, Joined> datasets;
  for (const RankContents& rank : ranks)
    for (const DatasetContent& content : rank.contents)
      datasets[{content.owner, content.dataset, content.again}].add(rank.rank, content);
  std::vector<DatasetContent> whole;
  for (const auto& [key, joined] : datasets) {
    const DatasetContent& any = joined.any();
    const auto name = [&] {
      const std::string holder = any.owner == 0 ? file.path() : file.track_file(any.owner - 1);
      return fmt::format("{}: dataset {}", holder, dataset_path(config, any));
    };
    whole.push_back(joined.whole(name));
    // The table comes before its head.
    if (any.again != 0 && whole.back().crc != whole[whole.size() - 2].crc)
      throw_bad_input("{}: it was read twice with different content", name());
  }
  ContentDigests digests{owner_digest(config, whole, 0), {}};
  for (std::int64_t t = 0; t < config.tracks; ++t)
    digests.tracks.push_back(owner_digest(config, whole, static_cast<std::size_t>(t) + 1));
  return digests;
}

}  // namespace ptrt
