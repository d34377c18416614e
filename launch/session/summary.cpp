#include "launch/session/summary.h"

#include <fmt/format.h>

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

}  // namespace

std::string summary_table(const RunSummary& s, SummaryKind kind) {
  std::string out;
  out += row("requests", s.failed > 0 ? fmt::format("{} done, {} failed", s.requests, s.failed)
                                      : fmt::format("{} done", s.requests));
  out += row("tokens", fmt::format("{} in, {} out, {:.2f} s", s.prompt_tokens, s.output_tokens, s.elapsed_s));
  if (kind != SummaryKind::score) {
    out += fmt::format("  {:<{}} {:>9} {:>9} {:>9} {:>9}\n", "latency [ms]", kLabel, "mean", "p50", "p90",
                       "p99");
    out += latency_row("  TTFT  time to first token", s.ttft_ms);
    out += latency_row("  TPOT  time per output token", s.tpot_ms);
    if (kind == SummaryKind::bench) {
      out += latency_row("  ITL   between two tokens", s.itl_ms);
      out += latency_row("  E2EL  to the last token", s.e2el_ms);
    }
    out += row("throughput", fmt::format("{:.1f} output tokens/s, {:.1f} tokens/s, {:.2f} requests/s",
                                         s.output_tokens_per_s, s.total_tokens_per_s, s.requests_per_s));
    out += row("prefill, decode", fmt::format("{:.1f} tokens/s, {:.1f} tokens/s", s.prefill_tokens_per_s,
                                              s.decode_tokens_per_s));
  } else {
    out += row("throughput",
               fmt::format("{:.1f} tokens/s, {:.2f} requests/s", s.total_tokens_per_s, s.requests_per_s));
  }
  out +=
      row("sync points a forward pass", fmt::format("{:g}, {:.1f} KiB sent a rank", s.sync_points_per_forward,
                                                    s.sync_bytes_per_forward / 1024));
  if (kind == SummaryKind::bench)
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
  if (kind == SummaryKind::bench && s.device_idle_fraction)
    out += row("device idle between decode steps", fmt::format("{:.1f} %", 100 * *s.device_idle_fraction));
  if (s.head_exchanges_per_forward > 0)
    out += row("split vocabulary head",
               fmt::format("{:.3g} exchanges a forward pass, {:.1f} KiB sent a rank, {:.1f} % of the time",
                           s.head_exchanges_per_forward, s.head_bytes_per_forward / 1024,
                           100 * s.head_time_fraction));
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
