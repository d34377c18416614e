// A model that is ready to run on this rank: weights, communicators and engine. Used by generate, score and
// bench.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "kernels/backend.h"
#include "kernels/base/output_file.h"
#include "launch/observe/metrics_file.h"
#include "launch/observe/trace_file.h"
#include "launch/options/run_options.h"
#include "launch/session/model_source.h"
#include "launch/session/run_plan.h"
#include "model_io/shard/model_content.h"
#include "model_io/shard/track_shard.h"
#include "runtime/comm/track_comm.h"
#include "runtime/comm/watchdog.h"
#include "runtime/serving/engine.h"

namespace ptrt {

class ModelSession {
 public:
  // Opens the model, or with `random_config` only the configuration, and agrees on the plan of the run.
  // Of the model's files `known` is what was read already; null: nothing. Collective; errors are agreed on by
  // all ranks. `options` must outlive the session.
  ModelSession(const ModelRunOptions& options, JobComm& job, const ModelMetadata* known,
               const std::string& random_config = "");
  // Loads this rank's weights (or makes them, with random_config) and builds the engine. Collective.
  void load(std::uint64_t random_seed = 0);
  // Engine::run() under the watchdog.
  bool run(Task task, std::span<const Request> requests, std::span<const std::int64_t> order,
           const Engine::Hooks& hooks);
  bool run(Task task, RequestSource* source, const Engine::Hooks& hooks);
  // --metrics: requests of the job, and more of them that are done. On rank 0.
  void note_requests(std::int64_t total, std::int64_t done);
  void note_done(std::int64_t requests);
  // Writes the trace, and the metrics with rank 0's summary (null: none), where they are asked for. Collective; after
  // the last run.
  void write_observations(const RunSummary* summary);
  // Digest of the model's contents and of what its numbers depend on; equal on every rank. After load().
  std::string digest() const;
  // The same from the recorded checksums alone; none where a dataset of the model has none.
  std::optional<std::string> digest_before_load() const;

  const ModelRunOptions& options() const { return options_; }
  const ModelSource& model() const { return model_; }
  const ModelConfig& config() const { return model_.config; }
  const TokenizerChoice& tokenizer() const { return model_.tokenizer; }
  const RunPlan& plan() const { return run_.plan; }
  const Backend& backend() const { return *run_.backend; }
  const Engine& engine() const { return *engine_; }
  // Of the runs from now on, instead of those that the options ask for; null: no speculation.
  void set_drafters(DrafterFactory drafters) { engine_->set_drafters(std::move(drafters)); }
  std::int64_t kv_tokens() const { return plan().kv_pages * kPageTokens; }
  // The files of --trace and --metrics, to be checked with those of the command, and this rank's log.
  std::vector<NamedFile> observed_files() const;
  void check_observed() const;  // throws bad_input where one cannot be written
  double load_seconds() const { return load_seconds_; }

 private:
  void adopt_weights();
  std::unique_ptr<TrackComm> join_group(std::int64_t colour, std::int64_t size, const char* others);
  EngineComms join_groups();
  void make_engine(const EngineComms& comms);
  // After an error in a job of several ranks on GPUs: the device may wait for ranks that are gone, and the end of its memory,
  // streams and handles for the device. They are left to the end of the process.
  void abandon_device() noexcept;
  bool run_watched(const Engine::Hooks& hooks, const std::function<bool(const Engine::Hooks&)>& run);
  void start_observing();

  const ModelRunOptions& options_;
  JobComm& job_;
  const ModelSource model_;
  AgreedRun run_;
  const std::optional<ContentDigests> recorded_;  // what the model file says of its content
  ContentDigests content_;                        // what the ranks have read
  TrackShard shard_;
  std::unique_ptr<Watchdog> own_watchdog_;  // where the job has none
  Watchdog* watchdog_ = nullptr;
  // All ranks of the replica; those with the other tracks, and those that share this rank's tracks, where
  // they are not the same or one alone.
  std::unique_ptr<TrackComm> comm_, fusion_comm_, track_comm_;
  std::unique_ptr<TraceFile> trace_;         // null: nothing is traced
  std::unique_ptr<Backend> traced_backend_;  // the engine's, where it is
  std::unique_ptr<MetricsFile> metrics_;     // rank 0's; null: none are written
  std::unique_ptr<Engine> engine_;
  double load_seconds_ = 0;
};

}  // namespace ptrt
