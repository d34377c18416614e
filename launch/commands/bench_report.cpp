#include "launch/commands/bench_report.h"

#include <sys/resource.h>

#include <fstream>

#include "kernels/base/error.h"

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

void write_text(const std::string& path, const std::string& text) {
  std::ofstream out(path);
  out << text;
  out.close();
  if (!out) throw_bad_input("cannot write {}", path);
}

// {"a": {"b": 1}} as a_b = 1. The model's configuration has no place in a line.
ordered_json flat(const ordered_json& object) {
  ordered_json result;
  for (const auto& [name, value] : object.items()) {
    if (name == "config") continue;
    if (!value.is_object())
      result[name] = value;
    else
      for (const auto& [inner, figure] : value.items()) result[name + "_" + inner] = figure;
  }
  return result;
}

std::string csv_field(const ordered_json& value) {
  if (!value.is_string()) return value.dump();
  std::string text = "\"";
  for (const char c : value.get<std::string>()) {
    if (c == '"') text += '"';
    text += c;
  }
  text += '"';
  return text;
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
  json["preemptions"] = s.preemptions;
}

void add_setup(ModelSession& session, ordered_json& json) {
  const Placement& p = session.placement();
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
  json["compute"] = session.compute();
  json["kv_dtype"] = to_string(session.kv_dtype());
  json["instruction_set"] = session.backend().instruction_set();
  json["threads"] = session.threads();
  json["binding"] = session.core_share().bound ? "cores" : "none";
  json["oversubscribed"] = session.core_share().oversubscribed;
  json["fusion"] = session.engine().describe_syncs();
  json["emulated"] = session.emulated().has_value();
  if (!session.emulated()) return;
  json["emulate_ranks"] = session.emulated()->ranks;
  json["link_latency_us"] = session.emulated()->link.latency_us;
  json["link_gb_per_s"] = session.emulated()->link.gb_per_s;
}

}  // namespace

ordered_json bench_json(const BenchOptions& options, ModelSession& session, const BenchCell& cell,
                        const RunSummary& s) {
  ordered_json json;
  json["model"] = session.config().name;
  json["config"] = ordered_json::parse(to_json(session.config()));
  if (options.dataset.empty())
    json["input_len"] = cell.input_len, json["output_len"] = cell.output_len;
  else
    json["dataset"] = options.dataset;
  json["requests"] = cell.requests.size();
  json["request_rate"] = options.request_rate;
  json["max_batch"] = options.run.max_batch;
  json["max_step_tokens"] =
      std::max(options.run.max_step_tokens, options.run.max_batch);  // as the engine takes it
  json["seed"] = options.seed;
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

void write_json(const std::string& path, const std::vector<ordered_json>& runs) {
  const ordered_json whole = runs.size() == 1 ? runs[0] : ordered_json{{"runs", runs}};
  write_text(path, whole.dump(2) + "\n");
}

void write_csv(const std::string& path, const std::vector<ordered_json>& runs) {
  std::string text;
  for (const ordered_json& run : runs) {
    std::string names, values;
    const ordered_json row = flat(run);
    for (const auto& [name, value] : row.items()) {
      if (!names.empty()) names += ',', values += ',';
      names += name;
      values += csv_field(value);
    }
    if (text.empty()) text = names + "\n";
    text += values + "\n";
  }
  write_text(path, text);
}

}  // namespace ptrt
