// What a shard's results say of themselves for `ptrt merge`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/jsonl/request_stream.h"
#include "runtime/journal/finished_run.h"
#include "runtime/journal/shard_record.h"

namespace ptrt {

// The lines of a shard's published results that did not fit the KV cache.
std::vector<std::int64_t> find_kv_cache_exceeded(const std::string& results_path, const Shard& shard,
                                                 const RequestFileFacts& file);
// `kv_cache_exceeded` in any order; `results` has most_tokens.
ShardRecord make_shard_record(const BatchIdentity& batch, const Shard& shard, const RequestFileFacts& file,
                              std::vector<std::int64_t> kv_cache_exceeded, const FinishedRun& results);

}  // namespace ptrt
