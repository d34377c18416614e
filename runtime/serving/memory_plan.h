// A plan of device memory before any is allocated: what a rank's weights, scratch and pages need,
// and what is left for the KV cache. Pure functions; sizes are bytes.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "kernels/base/host_memory.h"
#include "kernels/kv_pool.h"
#include "kernels/tensor.h"
#include "model_io/config/model_config.h"
#include "model_io/config/tensor_names.h"
#include "runtime/serving/engine.h"

namespace ptrt {

// Element types in a GPU's memory.
struct DeviceTypes {
  DType activations = DType::bfloat16;  // of matrices, keys and values too
  DType embedding = DType::
      bfloat16;  // as stored, of a table that is only looked up, as a tied one is where the head is split
  std::map<std::string, DType> narrow = {};  // by path: the matrices stored in 8 bits, which stay so

  // A tensor of the model, and its type in the file: of an embedding, or of a matrix of 8 bits.
  void note(const TensorSpec& spec, DType stored);
  // Of a matrix that was noted.
  DType of_matrix(const TensorSpec& spec) const;
};

// The activation dtype for matrices (a tied token table among them) that are all `stored` in one
// type; none: they differ. float16 for float16, else bfloat16, whose range holds every other type.
DType activation_dtype_on_device(std::optional<DType> stored);

struct DeviceNeeds {
  std::int64_t weights = 0;
  std::int64_t scratch = 0;  // activations, logits and what Backend::reserve() takes
  std::int64_t kv_page = 0;  // kPageTokens tokens of every layer
  std::int64_t sums = 0;     // between ranks: buffers, and what NCCL takes for itself
};

// How the ranks of a replica add up on GPUs.
struct DeviceSums {
  DeviceFusion fusion = DeviceFusion::automatic;
  bool emulated = false;    // without NCCL
  HeadRows head_rows = {};  // of the vocabulary head, where it is split
};

// What a communicator of NCCL takes of a device beside the buffers it is given: an estimate from NCCL's source
// (docs/CUDA.md), 24 channels of a ring with 9.2 MiB each, 256 MiB for sums in the switches, and the rest.
inline constexpr std::int64_t kNcclBytes = std::int64_t{512} << 20;

// `rank_config`: what the rank computes of the model (config_of_rank).
DeviceNeeds device_needs(const ModelConfig& rank_config, const Placement& placement, const DeviceTypes& types,
                         std::int64_t max_batch, std::int64_t max_rows, const DeviceSums& sums = {});

// Activations of a step, as Engine::scratch_bytes() counts them once they are there.
std::int64_t activation_bytes(const ModelConfig& rank_config, std::int64_t tracks, std::int64_t max_rows,
                              std::int64_t logit_rows, DType activation_dtype, bool split_track);

// Kept free for what is not planned: CUDA graphs, modules that are loaded on first use, workspaces
// of libraries.
inline constexpr std::int64_t kDeviceReserveBytes = std::int64_t{512} << 20;

struct DevicePlan {
  std::int64_t free = 0;  // on the device at start
  std::int64_t weights = 0, scratch = 0, sums = 0, reserve = 0;
  std::int64_t kv = 0;  // at most

  // "weights 15.0 GiB, KV up to 50.6 GiB, ..."
  std::string describe() const;
};

// The KV cache gets what was asked for, else fraction · free minus weights, scratch, sums and reserve.
// Throws bad_input, with what is needed and what is free, when the weights do not fit, when no page
// fits beside them, or when what was asked for does not fit.
DevicePlan plan_device_memory(const DeviceNeeds& needs, std::int64_t free, double fraction,
                              std::optional<std::int64_t> kv_asked);

// What a rank on CPUs takes of its host.
struct HostNeeds {
  std::int64_t weights = 0;  // copied into its memory
  std::int64_t mapped = 0;   // used in place in the file: pages that ranks share and the system may reclaim
  std::int64_t scratch = 0;  // activations and logits
  std::int64_t kv_page = 0;
};

// Kept free for what is not planned: the program itself, libraries, requests, buffers of exchanges.
inline constexpr std::int64_t kHostReserveBytes = std::int64_t{64} << 20;

struct HostPlan {
  std::int64_t kv = 0;     // bytes that the KV cache may take
  std::string limited_by;  // what made it so small; empty where that is a quarter of physical memory
};

// A KV cache whose size was not asked for gets a quarter of what the rank may plan with, but no more than
// its weights and scratch leave; mapped weights count only where the limit counts mapped files. Throws
// bad_input, with all figures, when a limit leaves no room for a page, or physical memory and swap none
// for the weights. Where only physical memory is short, it gets at least `sequence_pages`.
HostPlan plan_host_memory(const HostNeeds& needs, const MemoryLimit& limit, std::int64_t sequence_pages);

// 1610612736 as "1.5 GiB".
std::string with_byte_unit(std::int64_t bytes);

}  // namespace ptrt
