// RESULTS.jsonl.shard: what publishing a shard's results (--shard) leaves beside them, so that `ptrt merge` can
// put the shards of one job together. One line:
//
//   {"ptrt_shard":1,"job":"…","requests":"xxxxxxxxxxxxxxxx","index":I,"count":N,"file_lines":L,
//    "lines":[[FIRST,HOW_MANY],…],"kv_tokens":T,"kv_cache_exceeded":[…],"most_tokens":M,"bytes":B,
//    "results_crc32c":"xxxxxxxx","crc32c":"xxxxxxxx"}
//
// "lines" are the numbers, in the whole request file, of the lines that have a result: runs in steps of N. They are all
// of the shard's but blank lines; how many these are, "blank_lines":K before "kv_tokens" says where there are any. Results of one KV pool are those where no line that has one needed more than a pool that was
// too small for another line.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/job/shard.h"

namespace ptrt {

// A job's name begins so where its results have no order.
inline constexpr const char* kUnordered = "unordered-";

// What the shards of one job have in common. All that the job's results depend on.
struct BatchIdentity {
  std::string job;             // the task, and the digest of model and options
  std::uint64_t requests = 0;  // digest of the request file's bytes

  // Of the journal of the job that runs the whole file.
  std::string digest() const;

  bool operator==(const BatchIdentity&) const = default;
};

struct ShardRecord {
  BatchIdentity batch;
  Shard shard;
  std::int64_t file_lines = 0;  // of the request file
  struct Run {
    std::int64_t first = 0, count = 0;
    bool operator==(const Run&) const = default;
  };
  std::vector<Run> lines;
  std::int64_t blank_lines = 0;                 // of the shard
  std::int64_t kv_tokens = 0;                   // of the KV pool, if lines did not fit it; else 0
  std::vector<std::int64_t> kv_cache_exceeded;  // those lines, ascending
  std::int64_t most_tokens = 0;                 // of the KV cache, for the largest of the other lines
  std::int64_t bytes = 0;                       // of the results
  std::uint32_t results_crc32c = 0;

  std::int64_t results() const;

  bool operator==(const ShardRecord&) const = default;
};

std::string shard_record_path(const std::string& results_path);

// None where there is no such file. Throws bad_input for a file that this program did not write.
std::optional<ShardRecord> read_shard_record(const std::string& results_path);
// Replaces what is there. Throws failure.
void write_shard_record(const std::string& results_path, const ShardRecord& record);

}  // namespace ptrt
