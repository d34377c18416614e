// Options of every command that runs a model (generate, score, bench). Where `--option auto` leaves a choice
// to the program, the optional is empty.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/device_collectives.h"
#include "kernels/tensor.h"
#include "runtime/sync/all_reduce.h"

namespace ptrt {

enum class Device : std::uint8_t { cpu, cuda };
enum class VocabHeadMode : std::uint8_t { whole, split };

// As --fusion names it.
constexpr std::string_view to_string(DeviceFusion fusion) {
  switch (fusion) {
    case DeviceFusion::automatic:
      return "auto";
    case DeviceFusion::tree:
      return "tree";
    case DeviceFusion::nccl:
      return "nccl";
    case DeviceFusion::staged:
      return "staged";
  }
  return "unknown";
}

// This process runs the first rank's share of a replica of so many ranks; the other ranks do not exist.
struct EmulatedRanks {
  std::int64_t ranks = 1;
  LinkModel link;
};

struct ModelRunOptions {
  std::string model;         // file
  bool trust_links = false;  // of the file, wherever they lead
  std::optional<Device> device;
  std::optional<Compute> compute;     // input type of the matrix products
  bool int8_weights = false;          // matrices are quantised on load; else they stay as stored
  std::optional<bool> share_weights;  // one copy for the replicas of a host; none: where they can
  std::optional<DType> kv_dtype;      // float32 or bfloat16
  std::optional<VocabHeadMode> vocab_head;
  bool cuda_graphs = true;
  int threads = 0;           // CPU threads a rank; 0: one for each core of its share of the host
  bool bind_threads = true;  // each to a core of its own, where there are enough cores
  std::int64_t max_batch = 32;
  std::int64_t max_step_tokens = 512;
  std::int64_t drafts = 0;  // of n-grams, at most, for a sequence in a step; 0: no speculation
  std::optional<std::int64_t> kv_cache_bytes;  // a rank
  bool prefix_cache = true;                    // prompts that begin alike share keys and values
  double gpu_memory_fraction = 0.9;            // of the device's free memory at start that the plan may use
  std::int64_t replicas = 0;                   // 0: from the number of ranks
  std::int64_t tensor_parallel = 1;
  DeviceFusion fusion = DeviceFusion::automatic;  // between ranks on GPUs
  bool share_gpu = false;                         // several ranks may use one GPU
  bool allow_singleton = false;           // this process may be alone although a launcher started several
  double step_timeout_s = 300;            // 0: none
  std::optional<EmulatedRanks> emulated;  // bench only
  bool quiet = false;
  // Files about the run, rank names in them not yet filled in; empty: none (launch/observe).
  std::string trace, metrics, log_file;

  // Rows of the largest step: decode tokens plus prefill chunks.
  std::int64_t max_step_rows() const { return std::max(max_step_tokens, max_batch); }
};

}  // namespace ptrt
