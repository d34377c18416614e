#include "launch/observe/metrics_file.h"

#include <fmt/format.h>

#include <iterator>

#include "kernels/base/error.h"
#include "kernels/base/output_file.h"
#include "launch/job/standard_streams.h"

namespace ptrt {
namespace {

// A label's value as the format wants it.
std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    out += c == '\n' ? std::string("\\n") : std::string(1, c);
  }
  return out;
}

class Text {
 public:
  void begin(const std::string& name, const char* type, const char* help) {
    name_ = name;
    text_ += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
  }
  void sample(auto value, const std::string& labels = "") {
    text_ += labels.empty() ? fmt::format("{} {}\n", name_, value)
                            : fmt::format("{}{{{}}} {}\n", name_, labels, value);
  }
  void gauge(const std::string& name, auto value, const char* help) {
    begin(name, "gauge", help);
    sample(value);
  }
  // Of rank 0's replica.
  void counter(const std::string& name, auto value, const char* help) {
    begin(name, "counter", help);
    sample(value, "replica=\"0\"");
  }
  void quantiles(const std::string& name, const Percentiles& ms, const char* help) {
    begin(name, "gauge", help);
    sample(ms.p50 * 1e-3, "quantile=\"0.5\"");
    sample(ms.p90 * 1e-3, "quantile=\"0.9\"");
    sample(ms.p99 * 1e-3, "quantile=\"0.99\"");
  }
  std::string take() { return std::move(text_); }

 private:
  std::string text_, name_;
};

void add_info(Text& text, const MetricsInfo& info) {
  std::string labels;
  for (const auto& [name, value] : info.labels)
    labels += fmt::format("{}{}=\"{}\"", labels.empty() ? "" : ",", name, escaped(value));
  text.begin("ptrt_info", "gauge", "What runs; always 1.");
  text.sample(1, labels);
  text.gauge("ptrt_start_time_seconds", info.start_time_s, "When the job started, in seconds since 1970.");
  text.gauge("ptrt_ranks", info.ranks, "MPI ranks of the job.");
  text.gauge("ptrt_replicas", info.replicas, "Copies of the model that share the requests.");
  text.gauge("ptrt_tracks", info.tracks, "Tracks of the model.");
}

void add_counters(Text& text, const RunCounters& c) {
  text.counter("ptrt_steps_total", c.steps, "Forward passes.");
  text.counter("ptrt_step_seconds_total", c.step_s, "Time in them.");
  text.counter("ptrt_prefill_tokens_total", c.prefill_tokens, "Prompt tokens computed.");
  text.counter("ptrt_decode_tokens_total", c.decode_tokens,
               "Tokens generated after the first of each request.");
  text.counter("ptrt_drafted_tokens_total", c.drafted_tokens, "Tokens that speculation proposed.");
  text.counter("ptrt_accepted_tokens_total", c.accepted_tokens, "Of them, those that the model gave too.");
  text.counter("ptrt_preemptions_total", c.preemptions, "Sequences that gave up their KV pages.");
  text.counter("ptrt_reused_tokens_total", c.reused_tokens,
               "Prompt tokens whose keys and values were in the prefix cache.");
  text.counter("ptrt_cannot_reuse_total", c.cannot_reuse,
               "Requests that reuse nothing, as they want log-probabilities of their prompt.");
  text.counter("ptrt_sync_points_total", c.fusions + c.track_sums, "Sync points.");
  text.counter("ptrt_sync_bytes_total", c.sync_bytes, "Bytes that rank 0 sent in them.");
  text.counter("ptrt_sync_seconds_total", c.sync_s, "Time in sync points: waiting, moving and adding.");
  text.counter("ptrt_sync_wait_seconds_total", c.sync_wait_s, "Of it, waiting for the slowest rank.");
}

void add_summary(Text& text, const RunSummary& s) {
  text.gauge("ptrt_job_requests_failed", s.failed, "Requests whose result is an error line.");
  text.gauge("ptrt_job_prompt_tokens", s.prompt_tokens, "Prompt tokens of the requests with a result.");
  text.gauge("ptrt_job_output_tokens", s.output_tokens, "Tokens of all results.");
  text.gauge("ptrt_job_elapsed_seconds", s.elapsed_s, "Time that the rates count.");
  text.gauge("ptrt_job_output_tokens_per_second", s.output_tokens_per_s, "Output tokens a second.");
  text.gauge("ptrt_job_requests_per_second", s.requests_per_s, "Requests a second.");
  text.gauge("ptrt_job_sync_points_per_output_token", s.sync_points_per_output_token,
             "Sync points of a forward pass over the tokens that it gives.");
  text.gauge("ptrt_job_sync_time_ratio", s.sync_time_fraction,
             "Share of step time in sync points, mean over ranks.");
  text.quantiles("ptrt_job_ttft_seconds", s.ttft_ms, "Time to the first token.");
  text.quantiles("ptrt_job_tpot_seconds", s.tpot_ms, "Time per output token after the first.");
}

void add(RunCounters& sum, const RunCounters& more) {
  sum.steps += more.steps;
  sum.step_s += more.step_s;
  sum.prefill_tokens += more.prefill_tokens;
  sum.decode_tokens += more.decode_tokens;
  sum.drafted_tokens += more.drafted_tokens;
  sum.accepted_tokens += more.accepted_tokens;
  sum.preemptions += more.preemptions;
  sum.reused_tokens += more.reused_tokens;
  sum.cannot_reuse += more.cannot_reuse;
  sum.fusions += more.fusions;
  sum.track_sums += more.track_sums;
  sum.sync_bytes += more.sync_bytes;
  sum.sync_s += more.sync_s;
  sum.sync_wait_s += more.sync_wait_s;
}

}  // namespace

std::string metrics_text(const MetricsInfo& info, const MetricsNow& now) {
  Text text;
  add_info(text, info);
  text.gauge("ptrt_running", now.running ? 1 : 0, "Whether the job runs.");
  text.gauge("ptrt_requests", now.requests, "Requests of the job.");
  text.gauge("ptrt_requests_done", now.requests_done, "Of them, those with a result, earlier runs included.");
  add_counters(text, now.counters);
  if (now.summary) add_summary(text, *now.summary);
  return text.take();
}

MetricsFile::MetricsFile(std::string path, MetricsInfo info, std::chrono::milliseconds interval)
    : path_(std::move(path)), info_(std::move(info)), interval_(interval), thread_([this] { work(); }) {}

MetricsFile::~MetricsFile() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void MetricsFile::set_requests(std::int64_t total, std::int64_t done) {
  const std::lock_guard lock(mutex_);
  now_.requests = total;
  now_.requests_done = done;
}

void MetricsFile::add_done(std::int64_t requests) {
  const std::lock_guard lock(mutex_);
  now_.requests_done += requests;
}

void MetricsFile::set_run(const RunCounters& counters) {
  const std::lock_guard lock(mutex_);
  now_.counters = ended_runs_;
  add(now_.counters, counters);
}

void MetricsFile::add_run(const RunCounters& counters) {
  const std::lock_guard lock(mutex_);
  add(ended_runs_, counters);
  now_.counters = ended_runs_;
}

void MetricsFile::set_summary(const RunSummary& summary) {
  const std::lock_guard lock(mutex_);
  now_.summary = summary;
}

void MetricsFile::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    const bool last = ending_;
    now_.running = !last;
    const MetricsNow now = now_;
    lock.unlock();
    write(now);
    if (last) return;
    lock.lock();
    changed_.wait_for(lock, interval_, [this] { return ending_; });
  }
}

// Under its name there is always a whole file, as the collector wants it.
void MetricsFile::write(const MetricsNow& now) {
  try {
    OutputFile file(path_);
    file.write(metrics_text(info_, now));
    file.publish();
  } catch (const Error& error) {
    if (!std::exchange(told_, true))
      say(fmt::format("ptrt: warning: the metrics are not written: {}\n", error.what()));
  }
}

}  // namespace ptrt
