// The content of a model, dataset by dataset, as the ranks read it between them: compared with the recorded
// checksums, and the model's identity however it is split.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model_io/config/model_config.h"
#include "model_io/file/model_file.h"
#include "model_io/shard/track_split.h"

namespace ptrt {

// What one rank knows of one dataset. Ranks exchange it as bytes.
struct DatasetContent {
  static constexpr std::uint64_t kWhole = ~std::uint64_t{0};

  std::uint32_t owner = 0;    // 0: shared; 1 + t: track t of the model
  std::uint32_t dataset = 0;  // 2 · the number of the tensor among its owner's; + 1: its scales
  std::uint32_t crc = 0;      // what `bytes` contribute to the CRC-32C of the whole dataset
  std::uint32_t recorded = 0;
  std::uint8_t has_recorded = 0;
  std::uint8_t again = 0;  // the head's rows of a tied table, which is there as a whole too
  std::uint8_t dtype = 0, layout = 0;
  // 1: not what counts, but bytes at the place `part` that other ranks may have read too; `crc` is of those.
  std::uint32_t shared = 0;
  std::uint64_t part = kWhole;  // which part: equal parts have equal content
  std::uint64_t bytes = 0;      // that count for this part (VerifiedSource)
  std::uint64_t total = 0;      // of the dataset
};
static_assert(sizeof(DatasetContent) == 48);

// The fields that do not depend on what is read; `scales`: of the tensor's second dataset.
DatasetContent content_of(std::size_t owner, std::size_t tensor, bool scales, const StoredTensor& stored,
                          std::optional<std::uint32_t> recorded);
std::uint64_t part_number(const TensorPart& part);

// Of the shared tensors and of `tracks` tracks from the metadata alone: whole datasets with their recorded
// checksums, `crc` 0 where none is recorded.
std::vector<DatasetContent> recorded_contents(const ModelFile& file, std::int64_t first_track,
                                              std::int64_t tracks);
// "/tracks/03/layers/007/wq.scale"
std::string dataset_path(const ModelConfig& config, const DatasetContent& content);
// Of paths, types, layouts and checksums of whole datasets; those of other owners, `again` and `shared` are passed
// over.
std::uint64_t owner_digest(const ModelConfig& config, std::span<const DatasetContent> contents,
                           std::size_t owner);

// A digest for the shared tensors and for each track.
struct ContentDigests {
  std::uint64_t shared = 0;
  std::vector<std::uint64_t> tracks;
  bool operator==(const ContentDigests&) const = default;
};

struct RankContents {
  std::string rank;  // what messages call it
  std::vector<DatasetContent> contents;
};

// Joins what the ranks of a job read; between them they have all of the model. Each part or byte that several
// ranks have read must be the same for all, and the whole must have the recorded checksum. Throws bad_input that names
// the dataset and the ranks.
ContentDigests merge_contents(const ModelFile& file, std::span<const RankContents> ranks);

}  // namespace ptrt
