// `ptrt bench`: random prompts of given lengths, all there at the start, and what they took.
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "kernels/error.h"
#include "launch/commands.h"
#include "launch/model_session.h"
#include "launch/process.h"
#include "launch/progress.h"
#include "launch/summary.h"

namespace ptrt {
namespace {

using nlohmann::ordered_json;

std::vector<Request> random_requests(const BenchOptions& options, const ModelConfig& config,
                                     std::int64_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Request> requests(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < requests.size(); i++) {
    Request& request = requests[i];
    request.line = static_cast<std::int64_t>(i);
    request.max_tokens = options.output_len;
    request.ignore_eos = true;
    for (std::int64_t t = 0; t < options.input_len; t++)
      request.tokens.push_back(
          static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(config.vocab_size)));
  }
  return requests;
}

RankReport run_once(ModelSession& session, const std::vector<Request>& requests) {
  const Placement& placement = session.placement();
  RankReport report;
  report.leads_replica = placement.leads_replica();
  std::vector<std::int64_t> all(requests.size());
  std::iota(all.begin(), all.end(), 0);
  const auto mine = requests_of_replica(requests, all, placement.replicas, placement.replica);
  Engine::Hooks hooks;
  hooks.stop_requested = stop_signal_received;
  hooks.completed = [&](Completion&& completion) {
    const Request& request = requests[static_cast<std::size_t>(completion.request)];
    if (report.leads_replica)
      report.timings.push_back({static_cast<std::int64_t>(request.tokens.size()),
                                static_cast<std::int64_t>(completion.tokens.size()), completion.first_token_s,
                                completion.finish_s});
  };
  if (!session.engine().run(Task::generate, requests, mine, hooks)) throw_failure("stopped by a signal");
  report.counters = session.engine().counters();
  return report;
}

ordered_json percentiles_json(const Percentiles& p) {
  return {{"mean", p.mean}, {"p50", p.p50}, {"p90", p.p90}, {"p99", p.p99}};
}

ordered_json to_json(const BenchOptions& options, ModelSession& session, const RunSummary& s) {
  return {{"model", session.config().name},
          {"input_len", options.input_len},
          {"output_len", options.output_len},
          {"requests", options.requests},
          {"max_batch", options.run.max_batch},
          {"elapsed_s", s.elapsed_s},
          {"output_tokens_per_s", s.output_tokens_per_s},
          {"total_tokens_per_s", s.total_tokens_per_s},
          {"requests_per_s", s.requests_per_s},
          {"ttft_ms", percentiles_json(s.ttft_ms)},
          {"tpot_ms", percentiles_json(s.tpot_ms)},
          {"prefill_tokens_per_s", s.prefill_tokens_per_s},
          {"decode_tokens_per_s", s.decode_tokens_per_s},
          {"sync_points_per_forward", s.sync_points_per_forward},
          {"fusions_per_forward", s.fusions_per_forward},
          {"track_sums_per_forward", s.track_sums_per_forward},
          {"sync_bytes_per_forward", s.sync_bytes_per_forward},
          {"sync_time_fraction", s.sync_time_fraction},
          {"sync_wait_fraction", s.sync_wait_fraction},
          {"sync_move_fraction", s.sync_move_fraction},
          {"head_exchanges_per_forward", s.head_exchanges_per_forward},
          {"head_bytes_per_forward", s.head_bytes_per_forward},
          {"head_time_fraction", s.head_time_fraction},
          {"preemptions", s.preemptions},
          {"world_size", session.placement().world_size},
          {"replicas", session.placement().replicas},
          {"tensor_parallel", session.placement().tensor_parallel},
          {"tracks", session.config().tracks},
          {"layers", session.config().layers},
          {"backend", session.backend().name()},
          {"compute", session.compute()},
          {"kv_dtype", to_string(session.kv_dtype())},
          {"instruction_set", session.backend().instruction_set()},
          {"threads", session.threads()},
          {"binding", session.core_share().bound ? "cores" : "none"},
          {"oversubscribed", session.core_share().oversubscribed},
          {"load_s", session.load_seconds()},
          {"emulated", false}};
}

void write_json(const std::string& path, const ordered_json& object) {
  std::ofstream out(path);
  out << object.dump(2) << "\n";
  out.close();
  if (!out) throw_bad_input("cannot write {}", path);
}

void check_lengths(const BenchOptions& options, const ModelSession& session) {
  const std::int64_t total = options.input_len + options.output_len;
  if (total > session.config().max_context)
    throw_bad_input("--input-len {} + --output-len {} exceed the model's max_context of {}",
                    options.input_len, options.output_len, session.config().max_context);
  if (total - 1 > session.kv_tokens())
    throw_bad_input(
        "--input-len {} + --output-len {} do not fit the KV cache of {} tokens: raise --kv-cache-bytes",
        options.input_len, options.output_len, session.kv_tokens());
}

}  // namespace

void run_bench(const BenchOptions& options, JobComm& job) {
  ModelSession session(options.run, job, options.random_weights);
  all_or_none(job, [&] { check_lengths(options, session); });
  session.load(options.seed);
  if (job.rank() == 0 && !options.run.quiet) say(session.describe() + "\n");

  if (options.warmup > 0)
    run_once(session, random_requests(options, session.config(), options.warmup, options.seed + 1));
  const auto requests = random_requests(options, session.config(), options.requests, options.seed);
  job.barrier();
  const RankReport report = run_once(session, requests);
  job.barrier();
  const RunSummary summary = gather_summary(job, report);
  all_or_none(job, [&] {
    if (job.rank() != 0) return;
    if (!options.run.quiet) fmt::print("{}", summary_table(summary, SummaryKind::bench));
    if (!options.json.empty()) write_json(options.json, to_json(options, session, summary));
  });
}

}  // namespace ptrt
