// RESULTS.jsonl.done: what publishing leaves beside the results, so that --resume of a finished job
// knows that nothing is left to do. One line:
//
//   {"ptrt_results":1,"digest":"…","requests":N,"bytes":B,"results_crc32c":"xxxxxxxx","crc32c":"xxxxxxxx"}
//
// Where requests did not fit the KV pool, "kv_tokens":T before the last key is the pool's size: with a larger
// one they might have results. A shard's has "most_tokens":M there too, which RESULTS.jsonl.shard is made of again.
//
// It is written before the results get their name and before the journal is removed. So it fits the
// results whenever there is no journal, unless someone changed one of them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace ptrt {

struct FinishedRun {
  std::string digest;  // as in the journal
  std::int64_t requests = 0;
  std::int64_t bytes = 0;            // of the results file
  std::uint32_t results_crc32c = 0;  // of its bytes
  std::int64_t kv_tokens = 0;        // of the KV pool, if requests did not fit it; else 0
  // Of a shard: of the KV cache, for the largest of the requests that have a result.
  std::optional<std::int64_t> most_tokens = {};

  bool operator==(const FinishedRun&) const = default;
};

std::string finished_path(const std::string& results_path);

// None where there is no such file. Throws bad_input for a file that this program did not write.
std::optional<FinishedRun> read_finished(const std::string& results_path);
// Replaces what is there. Throws failure.
void write_finished(const std::string& results_path, const FinishedRun& run);

// Whether the results are those of a finished run with this digest, by a job with a pool of `kv_tokens`. False
// where there are no results. Throws bad_input for the results of another run, of an unknown one, of one with
// too small a pool, and for changed ones.
bool is_finished(const std::string& results_path, const std::string& digest, std::int64_t requests,
                 std::int64_t kv_tokens = 0);

}  // namespace ptrt
