#include "launch/session/summary.h"

#include <fmt/format.h>

#include "launch/session/model_session.h"
#include "runtime/comm/track_comm.h"

namespace ptrt {
namespace {

constexpr int kLabel = 34;  // width of the first column

std::string row(const std::string& label, const std::string& value) {
  return fmt::format("  {:<{}} {}\n", label, kLabel, value);
}

std::string latency_row(const std::string& label, const Percentiles& p) {
  return fmt::format("  {:<{}} {:>9.2f} {:>9.2f} {:>9.2f} {:>9.2f}\n", label, kLabel, p.mean, p.p50, p.p90,
                     p.p99);
}

std::string count(std::int64_t n, const char* what) {
  return fmt::format("{} {}{}", n, what, n > 1 ? "s" : "");
}

// Of the weights, where the file has some in panels.
std::string mapped_part(const ModelSession& session) {
  const Backend& backend = session.backend();
  const bool mappable = session.model().file && session.plan().device == Device::cpu &&
                        (backend.mapped_bytes() > 0 || session.model().has_panels());
  if (!mappable) return "";
  return fmt::format(" ({:.0f} % mapped)", 100.0 * static_cast<double>(backend.mapped_bytes()) /
                                               static_cast<double>(backend.weight_bytes()));
}

// Of the weights, where they are not kept as they are stored.
std::string stored_part(const ModelSession& session) {
  const bool widened = session.plan().device == Device::cpu &&
                       session.model().has_matrix(session.plan().placement, DType::float8_e4m3);
  return widened ? fmt::format(" (stored as {})", to_string(DType::float8_e4m3)) : "";
}

std::string shared_part(const RunPlan& plan) {
  if (plan.weights.ranks > 1) return fmt::format(", one copy for {} ranks", plan.weights.ranks);
  return plan.weights.why_not.empty() ? "" : ", not shared: " + plan.weights.why_not;
}

std::string describe_device_types(const RunPlan& plan) {
  const std::string_view other = to_string(plan.activation_dtype);
  std::string matrices;
  for (const DType type : plan.matrix_types)
    matrices += fmt::format("{}{}", matrices.empty() ? "" : " and ", to_string(type));
  if (matrices.empty() || matrices == other)
    return fmt::format("matrices, activations, keys and values are {}", other);
  return fmt::format("matrices are {}, activations, keys and values {}", matrices, other);
}

std::string describe_devices(const ModelSession& session) {
  const RunPlan& plan = session.plan();
  std::string text;
  if (plan.device == Device::cuda && plan.placement.replica_ranks > 1)
    text = " | fusion over " + session.engine().describe_syncs();
  if (!plan.kv_limit.empty()) text = " | KV cache limited by " + plan.kv_limit;
  if (!plan.why_not_gpu.empty()) text += " | not on GPUs: " + plan.why_not_gpu;
  if (plan.device_memory)
    text += fmt::format("\n{}; {}", plan.device_memory->describe(), describe_device_types(plan));
  return text;
}

std::string latency_rows(const RunSummary& s, SummaryKind kind) {
  std::string out =
      fmt::format("  {:<{}} {:>9} {:>9} {:>9} {:>9}\n", "latency [ms]", kLabel, "mean", "p50", "p90", "p99");
  out += latency_row("  TTFT  time to first token", s.ttft_ms);
  out += latency_row("  TPOT  time per output token", s.tpot_ms);
  if (kind != SummaryKind::bench) return out;
  out += latency_row("  ITL   between two tokens", s.itl_ms);
  out += latency_row("  E2EL  to the last token", s.e2el_ms);
  return out;
}

std::string reuse(const RunSummary& s) {
  std::string text = fmt::format("{}", s.reused_tokens);
  if (s.cannot_reuse > 0)
    text += fmt::format("; {} may reuse none: log-probabilities of their first page are wanted",
                        count(static_cast<std::int64_t>(s.cannot_reuse), "request"));
  return text;
}

std::string throughput_rows(const RunSummary& s, SummaryKind kind) {
  if (kind == SummaryKind::score)
    return row("throughput",
               fmt::format("{:.1f} tokens/s, {:.2f} requests/s", s.total_tokens_per_s, s.requests_per_s));
  return row("throughput", fmt::format("{:.1f} output tokens/s, {:.1f} tokens/s, {:.2f} requests/s",
                                       s.output_tokens_per_s, s.total_tokens_per_s, s.requests_per_s)) +
         row("prefill, decode",
             fmt::format("{:.1f} tokens/s, {:.1f} tokens/s", s.prefill_tokens_per_s, s.decode_tokens_per_s));
}

std::string sync_rows(const RunSummary& s, SummaryKind kind) {
  std::string out =
      row("sync points a forward pass", fmt::format("{:g}, {:.1f} KiB sent a rank", s.sync_points_per_forward,
                                                    s.sync_bytes_per_forward / 1024));
  if (kind != SummaryKind::score)
    out +=
        row("  an output token", fmt::format("{:.2f}, {:.1f} KiB sent a rank", s.sync_points_per_output_token,
                                             s.sync_bytes_per_output_token / 1024));
  if (s.track_sums_per_forward > 0)
    out += row("  of them", fmt::format("{:g} fusions, {:g} sums within tracks", s.fusions_per_forward,
                                        s.track_sums_per_forward));
  const std::string parts = fmt::format(" ({:.1f} waiting for the slowest rank, {:.1f} moving and adding)",
                                        100 * s.sync_wait_fraction, 100 * s.sync_move_fraction);
  out += row("share of time in sync",
             fmt::format("{:.1f} %{}", 100 * s.sync_time_fraction, s.sync_wait_known ? parts : ""));
  return out;
}

}  // namespace

std::string describe_run(const ModelSession& session) {
  constexpr double kMiB = 1024.0 * 1024.0;
  const ModelConfig& config = session.config();
  const RunPlan& plan = session.plan();
  const Placement& p = plan.placement;
  const Backend& backend = session.backend();
  const std::string line = fmt::format(
      "{}: {} tracks x {} layers, {} sync points | {}, {} a rank{}, {} | {} x {} ({}, {}, {} products) | "
      "a rank holds {:.1f} MiB weights{}{}{}, {:.1f} MiB KV ({}) for {} tokens",
      config.name.empty() ? "model" : config.name, config.tracks, config.layers,
      config.tracks > 1 ? config.blocks() : 0, count(p.world_size, "rank"), count(p.tracks, "track"),
      p.tensor_parallel > 1 ? fmt::format(" (1/{} of each)", p.tensor_parallel) : "",
      count(p.replicas, "replica"), backend.traits().name, count(backend.traits().threads, "thread"),
      plan.cores.describe(), backend.instruction_set(), plan.product_type(),
      static_cast<double>(backend.weight_bytes()) / kMiB, stored_part(session), mapped_part(session),
      shared_part(plan), static_cast<double>(session.engine().kv_bytes()) / kMiB, to_string(plan.kv_dtype),
      session.kv_tokens());
  return emulation_notice(session) + line + describe_devices(session);
}

std::string emulation_notice(const ModelSession& session) {
  if (!session.options().emulated) return "";
  const auto& [ranks, link] = *session.options().emulated;
  return fmt::format(
      "EMULATED: rank 0 of {}; an exchange takes {:g} us and its bytes at {:g} GB/s; results mean nothing\n",
      ranks, link.latency_us, link.gb_per_s);
}

std::string summary_table(const RunSummary& s, SummaryKind kind) {
  std::string out;
  out += row("requests", s.failed > 0 ? fmt::format("{} done, {} failed", s.requests, s.failed)
                                      : fmt::format("{} done", s.requests));
  const std::string tokens = fmt::format("{} in, {} out", s.prompt_tokens, s.output_tokens);
  if (s.load_s)
    out += row("tokens", tokens) +
           row("time from requests to last result",
               fmt::format("{:.2f} s, and {:.2f} s to load the model", s.elapsed_s, *s.load_s));
  else
    out += row("tokens", fmt::format("{}, {:.2f} s", tokens, s.elapsed_s));
  if (kind != SummaryKind::score) out += latency_rows(s, kind);
  out += throughput_rows(s, kind) + sync_rows(s, kind);
  if (kind == SummaryKind::bench && s.device_idle_fraction)
    out += row("device idle between decode steps", fmt::format("{:.1f} %", 100 * *s.device_idle_fraction));
  if (s.head_exchanges_per_forward > 0)
    out += row("split vocabulary head",
               fmt::format("{:.3g} exchanges a forward pass, {:.1f} KiB sent a rank, {:.1f} % of the time",
                           s.head_exchanges_per_forward, s.head_bytes_per_forward / 1024,
                           100 * s.head_time_fraction));
  if (s.reused_tokens > 0 || s.cannot_reuse > 0) out += row("prompt tokens in the prefix cache", reuse(s));
  if (s.drafted_tokens > 0)
    out += row("speculation", fmt::format("{} tokens drafted, {} accepted ({:.1f} %)", s.drafted_tokens,
                                          s.accepted_tokens, 100 * s.acceptance()));
  if (s.preemptions > 0)
    out += row("preemptions", fmt::format("{} (a larger --kv-cache-bytes avoids them)", s.preemptions));
  return out;
}

RunSummary gather_summary(JobComm& job, const RankReport& mine) {
  std::vector<RankReport> ranks;
  for (const std::string& text : job.gather(serialize(mine))) ranks.push_back(parse_report(text));
  return summarize(ranks);
}

}  // namespace ptrt
