// The engine of one rank: steps of plan → forward → sample until every request is done. All ranks
// of a replica run it on the same requests and take the same decisions; only the sync points
// communicate.
//
// On a backend that runs ahead, step n + 1 is planned and issued while the device runs step n,
// whose tokens it reads on the device; then the host waits for the tokens of step n. The host
// therefore plans with knowledge that is one step old, on every rank alike.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "model_io/config/model_config.h"
#include "model_io/shard/track_shard.h"
#include "model_io/tokenizer/tokenizer.h"
#include "runtime/job/placement.h"
#include "runtime/model/forward.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/vocab_head.h"
#include "runtime/requests/request.h"
#include "runtime/requests/request_source.h"
#include "runtime/sampling/logit_rule_state.h"
#include "runtime/schedule/scheduler.h"
#include "runtime/schedule/step_pipeline.h"
#include "runtime/serving/run_counters.h"
#include "runtime/serving/token_digest.h"
#include "runtime/speculate/drafter.h"
#include "runtime/sync/all_reduce.h"
#include "runtime/sync/fusion.h"
#include "runtime/trace/tracer.h"

namespace ptrt {

// The groups of ranks that a rank communicates with. `replica`: all its ranks. `fusion`: one rank
// for each part of the tracks. `track`: those that share this rank's tracks; null without tensor
// parallelism. `all_reduce`: how the last two add up on devices.
struct EngineComms {
  TrackComm& replica;
  TrackComm& fusion;
  TrackComm* track = nullptr;
  AllReduceOptions all_reduce = {};
};

struct EngineOptions {
  std::int64_t max_batch = 32;      // sequences decoded together
  std::int64_t max_rows = 512;      // token rows of a step, decode and prefill chunks; at least max_batch
  std::int64_t kv_pages = 0;        // equal on every rank of a replica
  DType kv_dtype = DType::float32;  // of keys and values
  // At most so many steps are issued before the tokens of the one before are taken
  // (BackendTraits::steps_ahead).
  int steps_ahead = 1;
  bool prefix_cache = true;      // prompts that begin alike share keys and values
  DrafterFactory drafters = {};  // null: no speculation
};

// The bounds of an engine's steps, for a rank that computes `rank_config` of so many tracks.
WorkLimits work_limits(const ModelConfig& rank_config, std::int64_t tracks, const EngineOptions& options);

class Engine {
 public:
  // Calls out of the loop. `completed` is called on every rank, in the same order. `stop_requested`
  // is called once a step, on the replica's first rank, for all its ranks.
  struct Hooks {
    std::function<void(Completion&&)> completed;
    std::function<bool()> stop_requested;
    // The counts of the run so far, after a step, about once a second; null: not wanted. Devices that communicate
    // directly add the time of their sums at the end.
    std::function<void(const RunCounters&)> report = {};
  };

  // The references must outlive the engine. `config` is the model's; `rank_config` what this rank
  // computes of it (config_of_rank). `tokenizer` may be null: then there is no text.
  Engine(const ModelConfig& config, const ModelConfig& rank_config, const TrackShard& shard, Backend& backend,
         const EngineComms& comms, const Placement& placement, const Tokenizer* tokenizer,
         const EngineOptions& options);

  // Runs requests[i] for i in `order` (ascending arrival). A request that meets logits which are not
  // finite ends with a failed Completion; others are not affected. Returns false when it was asked to stop
  // before all were done. Requests must fit max_context and the KV pool. Throws when ranks have
  // diverged, and what the backend and the communication throw. Collective over the replica.
  bool run(Task task, std::span<const Request> requests, std::span<const std::int64_t> order,
           const Hooks& hooks);
  // The same with the requests that `source` gives while the engine runs; Completion::request is a
  // request's line, and arrivals are not looked at. On every rank of the replica but the first
  // `source` is null: all get the requests of the first.
  bool run(Task task, RequestSource* source, const Hooks& hooks);
  // Those of the runs from now on; null: none.
  void set_drafters(DrafterFactory drafters) { options_.drafters = std::move(drafters); }

  const RunCounters& counters() const { return counters_; }  // of the last run
  std::int64_t kv_bytes() const { return cache_.bytes(); }
  std::int64_t scratch_bytes() const { return forward_.scratch_bytes(); }
  // How this rank's sums reach other ranks, for people.
  std::string describe_syncs() const;

 private:
  struct Run;

  bool run_steps(Run& run);
  // Adds the requests that are new with the leader's signals, or that have arrived by them.
  void adopt_requests(Run& run);
  // One step on all ranks: issues it, takes the tokens of those that must not stay in flight, and
  // adopts the leader's signals.
  void run_step(Run& run);
  // Plans a step, and queues its forward pass and its sampling, or scores its rows.
  void issue_step(Run& run);
  void run_forward(const StepPlan& plan, const StepRows& rows);
  // Samples a token for each row, or queues that. Each sequence gets a placeholder.
  void sample_rows(Run& run, std::span<const LogitRow> rows);
  void queue_or_sample(bool greedy, bool alternatives, std::int64_t rows);
  const LogitEdits* edits_of(Run& run, const LogitRow& row, RowEdits& edits);
  std::span<const std::int32_t> output_before(const LogitRow& row);
  bool must_retire_first(const Run& run) const;
  std::span<const LogitRow> sampled_first(const StepPlan& plan);
  // Scores the token after each of `rows`, the wanted rows from `first` on.
  void score_rows(Task task, std::int64_t first, std::span<const LogitRow> rows);
  // The likeliest tokens in place of those scored, where they are asked for.
  void find_alternatives(bool of_prompt, Tensor logits, std::span<const LogitRow> rows);
  void score_piece(Task task, std::int64_t first, std::span<const LogitRow> rows);
  // Completes the sequences whose last token, or a token that cannot be scored, is among `rows`, all
  // that the step has scored.
  void complete_scored(Run& run, std::span<const LogitRow> rows);
  // Takes the tokens of the oldest step in flight; waits for them.
  void retire_step(Run& run);
  // Takes the token of a row in flight, unless it follows a draft that was wrong. `top`: of this row and those
  // after it; empty: no alternatives.
  void take_row(Run& run, const InFlightStep::Row& row, const Sampled& sampled,
                std::span<const TopLogprobs> top);
  void keep_alternatives(Sequence& sequence, const Sampled& sampled, std::span<const TopLogprobs> top);
  void accept_token(Run& run, Sequence& sequence, std::size_t place, const Sampled& sampled);
  void complete(Run& run, Sequence& sequence, FinishReason reason);
  // Of a request whose samples are all done.
  void complete_request(Run& run, Completion&& completion);
  void count_schedule(const Run& run, RunCounters& counters) const;
  void wait_for_requests(Run& run);
  void report_counters(Run& run);
  CounterSources counter_sources();
  SchedulerLimits scheduler_limits() const;
  // Drafts follow tokens that must be known.
  int steps_ahead() const { return options_.drafters ? 0 : steps_ahead_; }

  const ModelConfig& config_;
  Backend& backend_;
  const Tokenizer* tokenizer_;
  OutputMasks masks_;  // of requests with LogitRules::output
  EngineOptions options_;
  int steps_ahead_;
  KvCache cache_;
  TrackComm& replica_comm_;
  StepState state_;
  Fusion fusion_;
  std::unique_ptr<AllReduce> tensor_parallel_all_reduce_;  // with tensor parallelism
  VocabHead head_;
  Forward forward_;
  RunCounters counters_;
  Tracer* tracer_;  // null: nothing is traced
  bool leads_;      // the replica: its clock and signals decide
  std::uint64_t step_number_ = 0;
  TokenDigest digest_;
  // Scratch of a step, sized once.
  std::vector<std::int32_t> wanted_rows_, wanted_order_, targets_;
  std::vector<LogitRow> ordered_;
  std::vector<SampleParams> sample_params_;
  std::vector<RowEdits> row_edits_;
  std::vector<std::int32_t> drafted_output_;
  std::vector<Sampled> sampled_;
  std::vector<std::int32_t> top_counts_;
  std::vector<TopLogprobs> top_;
  std::vector<Scored> scored_;
};

}  // namespace ptrt
