#include "launch/commands/bench_report.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include "kernels/base/host_cores.h"

namespace ptrt {
namespace {

using nlohmann::ordered_json;

ordered_json percentiles_json(const Percentiles& p) {
  return {{"mean", p.mean}, {"p50", p.p50}, {"p90", p.p90}, {"p99", p.p99}};
}

// Largest resident memory of this rank so far.
std::int64_t peak_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return std::int64_t{usage.ru_maxrss} * 1024;
}

void add_syncs(const RunSummary& s, ordered_json& json) {
  json["sync_points_per_forward"] = s.sync_points_per_forward;
  json["fusions_per_forward"] = s.fusions_per_forward;
  json["track_sums_per_forward"] = s.track_sums_per_forward;
  json["sync_bytes_per_forward"] = s.sync_bytes_per_forward;
  json["sync_points_per_output_token"] = s.sync_points_per_output_token;
  json["sync_bytes_per_output_token"] = s.sync_bytes_per_output_token;
  json["sync_time_fraction"] = s.sync_time_fraction;
  json["sync_wait_fraction"] = s.sync_wait_known ? ordered_json(s.sync_wait_fraction) : ordered_json();
  json["sync_move_fraction"] = s.sync_wait_known ? ordered_json(s.sync_move_fraction) : ordered_json();
  json["head_exchanges_per_forward"] = s.head_exchanges_per_forward;
  json["head_bytes_per_forward"] = s.head_bytes_per_forward;
  json["head_time_fraction"] = s.head_time_fraction;
  if (s.device_idle_fraction) json["device_idle_fraction"] = *s.device_idle_fraction;
  json["drafted_tokens"] = s.drafted_tokens;
  json["accepted_tokens"] = s.accepted_tokens;
  json["acceptance"] = s.drafted_tokens > 0 ? ordered_json(s.acceptance()) : ordered_json();
  json["preemptions"] = s.preemptions;
  json["reused_tokens"] = s.reused_tokens;
}

void add_setup(const ModelSession& session, ordered_json& json) {
  const Placement& p = session.plan().placement;
  json["weight_bytes"] = session.backend().weight_bytes();
  json["mapped_weight_bytes"] = session.backend().mapped_bytes();
  json["kv_bytes"] = session.engine().kv_bytes();
  json["scratch_bytes"] = session.engine().scratch_bytes();
  json["peak_resident_bytes"] = peak_bytes();
  json["load_s"] = session.load_seconds();
  json["world_size"] = p.world_size;
  json["replicas"] = p.replicas;
  json["tensor_parallel"] = p.tensor_parallel;
  json["tracks"] = session.config().tracks;
  json["layers"] = session.config().layers;
  json["backend"] = session.backend().traits().name;
  json["compute"] = session.plan().product_type();
  json["kv_dtype"] = to_string(session.plan().kv_dtype);
  json["processor"] = processor_name();
  json["instruction_set"] = session.backend().instruction_set();
  json["threads"] = session.backend().traits().threads;
  json["binding"] = session.plan().cores.bound ? "cores" : "none";
  json["oversubscribed"] = session.plan().cores.oversubscribed;
  json["fusion"] = session.engine().describe_syncs();
  json["emulated"] = session.options().emulated.has_value();
  if (!session.options().emulated) return;
  const auto& [ranks, link] = *session.options().emulated;
  json["emulate_ranks"] = ranks;
  json["link_latency_us"] = link.latency_us;
  json["link_gb_per_s"] = link.gb_per_s;
}

}  // namespace

ordered_json bench_json(const BenchOptions& options, const ModelSession& session, const BenchCell& cell,
                        const RunSummary& s) {
  ordered_json json;
  json["model"] = session.config().name;
  json["config"] = ordered_json::parse(to_json(session.config()));
  if (options.dataset.empty())
    json["input_len"] = cell.input_len, json["output_len"] = cell.output_len;
  else
    json["dataset"] = options.dataset;
  json["requests"] = cell.requests.size();
  json["request_rate"] = fmt::format("{}", options.request_rate);
  json["max_batch"] = options.run.max_batch;
  json["max_step_tokens"] = options.run.max_step_rows();  // as the engine takes it
  json["seed"] = options.seed;
  json["drafts"] = options.run.drafts;
  json["forced_acceptance"] =
      options.forced_acceptance ? ordered_json(*options.forced_acceptance) : ordered_json();
  json["prompt_tokens"] = s.prompt_tokens;
  json["output_tokens"] = s.output_tokens;
  json["elapsed_s"] = s.elapsed_s;
  json["output_tokens_per_s"] = s.output_tokens_per_s;
  json["total_tokens_per_s"] = s.total_tokens_per_s;
  json["requests_per_s"] = s.requests_per_s;
  json["ttft_ms"] = percentiles_json(s.ttft_ms);
  json["tpot_ms"] = percentiles_json(s.tpot_ms);
  json["itl_ms"] = percentiles_json(s.itl_ms);
  json["e2el_ms"] = percentiles_json(s.e2el_ms);
  json["prefill_tokens_per_s"] = s.prefill_tokens_per_s;
  json["decode_tokens_per_s"] = s.decode_tokens_per_s;
  add_syncs(s, json);
  add_setup(session, json);
  return json;
}

}  // namespace ptrt
