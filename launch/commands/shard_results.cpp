#include "launch/commands/shard_results.h"

#include <algorithm>
#include <utility>

#include "launch/jsonl/result_lines.h"

namespace ptrt {

std::vector<std::int64_t> find_kv_cache_exceeded(const std::string& results_path, const Shard& shard,
                                                 const RequestFileFacts& file) {
  std::vector<std::int64_t> found;
  RequestInput results(results_path);
  RequestInput::Lines lines = results.lines();
  for (const LineRun& run : file.runs)
    for (std::int64_t i = 0; i < run.count; i++)
      if (const auto line = lines.next(); line && is_kv_cache_exceeded(*line))
        found.push_back(run.first + i * shard.count);
  return found;
}

ShardRecord make_shard_record(const BatchIdentity& batch, const Shard& shard, const RequestFileFacts& file,
                              std::vector<std::int64_t> kv_cache_exceeded, const FinishedRun& results) {
  ShardRecord record{.batch = batch,
                     .shard = shard,
                     .file_lines = file.lines,
                     .lines = {},
                     .blank_lines = shard.lines_of(file.lines) - file.requests,
                     .kv_tokens = results.kv_tokens,
                     .kv_cache_exceeded = std::move(kv_cache_exceeded),
                     .most_tokens = *results.most_tokens,
                     .bytes = results.bytes,
                     .results_crc32c = results.results_crc32c};
  std::ranges::sort(record.kv_cache_exceeded);
  for (const auto& [first, count] : file.runs) record.lines.push_back({first, count});
  return record;
}

}  // namespace ptrt
