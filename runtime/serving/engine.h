// The engine of one rank: steps of plan → forward → sample until every request is done. All ranks of a
// replica run it on the same requests and take the same decisions; only the fusion communicates.
//
// On a backend that runs ahead, step n + 1 is planned and queued while the device runs step n, whose tokens
// it feeds from where they are on the device; then the host waits for step n's tokens. What the host knows
// when it plans is so one step old, on every rank alike.
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
#include "runtime/comm/placement.h"
#include "runtime/model/forward.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/vocab_head.h"
#include "runtime/serving/metrics.h"
#include "runtime/serving/output_text.h"
#include "runtime/serving/request.h"
#include "runtime/serving/scheduler.h"
#include "runtime/sync/all_reduce.h"
#include "runtime/sync/fusion.h"

namespace ptrt {

// The groups that a rank talks to inside a step. `replica`: all ranks of it. `fusion`: those that hold the
// other tracks. `track`: those that share its tracks; null without tensor parallelism. `all_reduce`: how the
// last two add up on devices.
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
};

// What bounds the steps of an engine: `mine` is what the rank computes of the model, of so many tracks.
WorkLimits work_limits(const ModelConfig& mine, std::int64_t tracks, const EngineOptions& options);

class Engine {
 public:
  // What happens outside the loop. `completed` is called on every rank, in the same order; `stop_requested`
  // is asked once a step, and what the replica's first rank hears counts for all of them.
  struct Hooks {
    std::function<void(Completion&&)> completed;
    std::function<bool()> stop_requested;
  };

  // The references must outlive the engine. `config` is the model's, `mine` what this rank computes of it
  // (config_of_rank). `tokenizer` may be null: then there is no text.
  Engine(const ModelConfig& config, const ModelConfig& mine, const TrackShard& shard, Backend& backend,
         const EngineComms& comms, const Placement& placement, const Tokenizer* tokenizer,
         const EngineOptions& options);

  // Runs requests[i] for i in `order` (of ascending arrival); false when it was asked to stop before all were
  // done. Requests must fit max_context and the KV pool.
  bool run(Task task, std::span<const Request> requests, std::span<const std::int64_t> order,
           const Hooks& hooks);

  const RunCounters& counters() const { return counters_; }  // of the last run
  std::int64_t kv_bytes() const { return cache_.bytes(); }
  std::int64_t scratch_bytes() const { return forward_.scratch_bytes(); }
  // How this rank's sums meet those of others, for people.
  std::string describe_syncs() const;

 private:
  struct StepUnderWay;
  struct Run;

  void step(Run& run);
  void run_forward(const StepPlan& plan, const StepRows& rows);
  // Arrivals so far as the replica's first rank sees them.
  std::int64_t arrivals(const Run& run) const;
  void wait_for_arrivals(Run& run);
  void count_syncs();
  // Chooses the next tokens of the wanted rows, or has that queued; each sequence gets a placeholder.
  void sample_rows(Run& run, std::span<const LogitRow> rows);
  void queue_or_sample(bool greedy, std::int64_t rows);
  // The tokens of the oldest step under way; waits for them.
  void take_tokens(Run& run);
  void accept_token(Run& run, Sequence& sequence, std::size_t place, const Sampled& sampled);
  // The log-probability of the token that follows each wanted row from `first` on.
  void score_rows(Run& run, std::int64_t first, std::span<const LogitRow> rows);
  void complete(Run& run, Sequence& sequence, FinishReason reason);

  const ModelConfig& config_;
  Backend& backend_;
  const Tokenizer* tokenizer_;
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
  bool leads_;  // the replica: its clock and signals count
  std::uint64_t step_number_ = 0;
  std::uint64_t digest_ = 0;
  // Scratch of a step, sized once.
  std::vector<std::int32_t> wanted_rows_, targets_;
  std::vector<SampleParams> sample_params_;
  std::vector<Sampled> sampled_;
  std::vector<float> log_probs_;
};

// The share of a replica of the requests `pending` (ascending): dealt by cost, longest first, to the replica
// with the least so far; each replica then keeps their order. The same on every rank.
std::vector<std::int64_t> requests_of_replica(std::span<const Request> requests,
                                              std::span<const std::int64_t> pending, std::int64_t replicas,
                                              std::int64_t replica);

}  // namespace ptrt
