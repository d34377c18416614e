// A model made ready to run on this rank: placement, weights, KV pool, engine. Shared by generate, score and
// bench.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "kernels/backend.h"
#include "launch/options/commands.h"
#include "launch/session/core_share.h"
#include "launch/session/device_binding.h"
#include "model_io/config/model_config.h"
#include "model_io/file/model_file.h"
#include "model_io/shard/track_shard.h"
#include "model_io/tokenizer/tokenizer.h"
#include "runtime/comm/placement.h"
#include "runtime/comm/track_comm.h"
#include "runtime/comm/watchdog.h"
#include "runtime/serving/engine.h"
#include "runtime/serving/memory_plan.h"

namespace ptrt {

class ModelSession {
 public:
  // Opens the model, or with `random_config` only the configuration, and settles what needs no weights:
  // placement, threads, KV pages. Collective; errors are agreed on by all ranks.
  ModelSession(const ModelRunOptions& options, JobComm& job, const std::string& random_config = "");
  // Loads this rank's weights (or makes them, with random_config) and builds the engine. Collective.
  void load(std::uint64_t random_seed = 0);
  // Engine::run() under the watchdog.
  bool run(Task task, std::span<const Request> requests, std::span<const std::int64_t> order,
           const Engine::Hooks& hooks);

  const ModelConfig& config() const { return config_; }
  const Placement& placement() const { return placement_; }
  const TokenizerChoice& tokenizer() const { return tokenizer_; }
  Backend& backend() { return *backend_; }
  Engine& engine() { return *engine_; }
  // Type of the products' inputs.
  std::string compute() const {
    return std::string(device_ == "cuda" ? to_string(inner_) : to_string(compute_));
  }
  DType kv_dtype() const { return kv_dtype_; }
  int threads() const { return backend_->traits().threads; }
  const CoreShare& core_share() const { return share_; }
  std::int64_t kv_tokens() const { return kv_pages_ * kPageTokens; }
  double load_seconds() const { return load_seconds_; }

  // Digest of the model's contents and of what its numbers hang on; equal on every rank. Collective.
  std::string digest();
  // One line for people: model, placement, threads, memory.
  std::string describe() const;
  // Says that other ranks are emulated, and how; empty where none are.
  std::string emulation() const;
  std::string mapped_part() const;
  const std::optional<EmulatedRanks>& emulated() const { return options_.emulated; }

 private:
  std::string cuda_obstacle() const;
  std::string choose_device() const;
  Placement place() const;
  void bind_device();
  void settle_fusion();
  std::unique_ptr<Watchdog> make_watchdog();
  std::unique_ptr<TrackComm> join_group(std::int64_t colour, std::int64_t size, const char* others);
  void choose_backend();
  Compute choose_compute() const;
  DType choose_inner() const;
  // Of all weights of these roles that this rank has, as stored; none where they differ.
  std::optional<DType> stored_type(std::initializer_list<WeightRole> roles) const;
  std::int64_t kv_budget();
  DeviceNeeds needs_on_device() const;
  HeadRows choose_head_rows() const;
  EngineComms join_groups();
  TrackSplit split() const { return {placement_.tensor_parallel, placement_.tensor_rank}; }
  void plan_kv_pages();

  const ModelRunOptions& options_;
  JobComm& job_;
  std::optional<ModelFile> file_;  // not there with random weights
  ModelConfig config_;
  ModelConfig mine_;  // what this rank computes of it
  Placement placement_;
  TokenizerChoice tokenizer_;
  std::string device_ = "cpu";  // or "cuda"; the same on every rank
  std::string gpu_obstacle_;    // why ranks that see GPUs are on the CPU
  GpuChoice gpu_;
  DeviceFusion fusion_ = DeviceFusion::automatic;
  Compute compute_ = Compute::float32;  // on the CPU
  DType inner_ = DType::bfloat16;       // on a GPU: of matrices, activations, keys and values
  CoreShare share_;
  std::unique_ptr<Backend> backend_;
  DType kv_dtype_ = DType::float32;
  std::int64_t kv_pages_ = 0;
  std::optional<DevicePlan> device_plan_;  // where the backend has a memory of its own
  TrackShard shard_;
  std::unique_ptr<Watchdog> watchdog_;
  // All ranks of the replica; those with the other tracks, and those that share this rank's tracks, where
  // they are not the same or one alone.
  std::unique_ptr<TrackComm> comm_, fusion_comm_, track_comm_;
  std::unique_ptr<Engine> engine_;
  double load_seconds_ = 0;
};

}  // namespace ptrt
