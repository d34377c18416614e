// What a run is made of on this rank, agreed with the other ranks before any weight is loaded.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "kernels/backend.h"
#include "launch/host/core_share.h"
#include "launch/host/device_binding.h"
#include "launch/host/weight_sharing.h"
#include "launch/options/run_options.h"
#include "launch/session/model_source.h"
#include "model_io/shard/track_shard.h"
#include "runtime/comm/track_comm.h"
#include "runtime/job/placement.h"
#include "runtime/serving/memory_plan.h"

namespace ptrt {

struct RunPlan {
  Placement placement;
  ModelConfig rank_config;                   // what this rank computes of the model
  Device device = Device::cpu;               // the same on every rank
  std::string why_not_gpu;                   // why ranks that see GPUs run on the CPU; empty elsewhere
  GpuChoice gpu;                             // with Device::cuda
  CoreShare cores;                           // of the host
  Compute compute = Compute::float32;        // input type of the products on a CPU, on every rank
  DType activation_dtype = DType::bfloat16;  // on a GPU: of matrices, but for those of 8 bits, and all else
  std::set<DType> matrix_types;              // on a GPU: of this rank's matrices
  DType kv_dtype = DType::float32;
  DeviceFusion fusion = DeviceFusion::automatic;  // between GPUs; the same on every rank
  HeadRows head_rows;                             // none: the whole vocabulary head
  bool shares_weights = false;                  // ranks of the job may share weights; the same on every rank
  WeightGroup weights;                          // on a CPU: who else on this host has the same ones
  std::shared_ptr<WeightMemory> weight_memory;  // where these lie, if there is anyone; else null
  std::int64_t kv_pages = 0;                    // the same on every rank
  std::string kv_limit;                         // what keeps the KV cache small; empty: nothing unusual
  std::optional<DevicePlan> device_memory;      // where the backend has a memory of its own

  TrackSplit split() const { return {placement.tensor_parallel, placement.tensor_rank}; }
  // Input type of the products on this run's device.
  std::string_view product_type() const {
    return device == Device::cuda ? to_string(activation_dtype) : to_string(compute);
  }
};

// A plan and the backend it was made with: how GPUs meet and how much memory is free, only a backend knows.
struct AgreedRun {
  RunPlan plan;
  std::unique_ptr<Backend> backend;
};

// Binds the calling thread to its cores or this process to its GPU, as the options say. Collective; errors
// are agreed on by all ranks.
AgreedRun agree_on_run(JobComm& job, const ModelRunOptions& options, const ModelSource& model);

}  // namespace ptrt
