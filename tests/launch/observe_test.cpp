// Names of log files, and the metrics as a Prometheus collector reads them.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <string_view>

#include "kernels/base/error.h"
#include "launch/observe/job_log.h"
#include "launch/observe/metrics_file.h"
#include "temp_folder.h"

namespace ptrt::testing {
namespace {

TEST(JobLog, NamesAFileForEachRank) {
  EXPECT_EQ(name_for_rank("run.log", 3, "node7"), "run.log");
  EXPECT_EQ(name_for_rank("a.%h.%r.log", 3, "node7"), "a.node7.3.log");
  EXPECT_EQ(name_for_rank("100%%.%r", 12, "h"), "100%.12");
  for (const char* bad : {"%", "a%q", "a.%R"}) EXPECT_THROW(name_for_rank(bad, 0, "h"), Error) << bad;
}

std::size_t end_of_name(std::string_view text, std::size_t at) {
  return std::min(text.find_first_not_of("abcdefghijklmnopqrstuvwxyz_", at), text.size());
}

// Where the labels at `at` end, {name="value",…} with \\, \" and \n in values; npos where they are none.
std::size_t end_of_labels(std::string_view text, std::size_t at) {
  do {
    const std::size_t name = ++at;
    at = end_of_name(text, at);
    if (at == name || text.substr(at, 2) != "=\"") return std::string_view::npos;
    for (at += 2; at < text.size() && text[at] != '"'; at++)
      if (text[at] == '\\') at++;
    if (++at >= text.size()) return std::string_view::npos;
  } while (text[at] == ',');
  return text[at] == '}' ? at + 1 : std::string_view::npos;
}

struct Sample {
  std::string name, labels;
  double value;
};

std::optional<Sample> parse_sample(const std::string& line) {
  const std::size_t name = end_of_name(line, 0);
  const std::size_t end = line.substr(name, 1) == "{" ? end_of_labels(line, name) : name;
  if (name == 0 || end == std::string::npos || line.substr(end, 1) != " ") return std::nullopt;
  std::size_t used = 0;
  const std::string number = line.substr(end + 1);
  const double value = std::stod(number, &used);
  if (used != number.size()) return std::nullopt;
  return Sample{line.substr(0, name), line.substr(name, end - name), value};
}

// Every sample by name and labels. Each name has one HELP and one TYPE before its samples, which stand together.
std::map<std::string, double> parse_metrics(const std::string& text) {
  std::map<std::string, double> samples;
  std::set<std::string> described;
  std::string current, line;
  std::istringstream in(text);
  while (std::getline(in, line)) {
    if (line.starts_with("# HELP ")) {
      current = line.substr(7, line.find(' ', 7) - 7);
      EXPECT_TRUE(described.insert(current).second) << line;
      continue;
    }
    if (line.starts_with("# TYPE ")) {
      EXPECT_TRUE(line == "# TYPE " + current + " gauge" || line == "# TYPE " + current + " counter") << line;
      EXPECT_EQ(line.ends_with("counter"), current.ends_with("_total")) << line;
      continue;
    }
    const auto sample = parse_sample(line);
    if (!sample) {
      ADD_FAILURE() << line;
      continue;
    }
    EXPECT_EQ(sample->name, current) << line;
    EXPECT_TRUE(samples.emplace(sample->name + sample->labels, sample->value).second) << line;
  }
  return samples;
}

TEST(Metrics, AreInPrometheusFormat) {
  const MetricsInfo info{.labels = {{"model", "a \"b\" \\ c\nd"}, {"backend", "cpu"}},
                         .ranks = 8,
                         .replicas = 2,
                         .tracks = 4,
                         .start_time_s = 1234.5};
  MetricsNow now;
  now.requests = 10;
  now.requests_done = 7;
  now.counters.fusions = 6;
  now.counters.track_sums = 4;
  auto samples = parse_metrics(metrics_text(info, now));
  EXPECT_EQ(samples.at("ptrt_info{model=\"a \\\"b\\\" \\\\ c\\nd\",backend=\"cpu\"}"), 1);
  EXPECT_EQ(samples.at("ptrt_ranks"), 8);
  EXPECT_EQ(samples.at("ptrt_requests_done"), 7);
  EXPECT_EQ(samples.at("ptrt_sync_points_total{replica=\"0\"}"), 10);
  EXPECT_FALSE(samples.contains("ptrt_job_output_tokens"));
  now.summary = RunSummary{};
  now.summary->ttft_ms.p90 = 250;
  samples = parse_metrics(metrics_text(info, now));
  EXPECT_DOUBLE_EQ(samples.at("ptrt_job_ttft_seconds{quantile=\"0.9\"}"), 0.25);
}

RunCounters counters(std::uint64_t steps) {
  RunCounters counts;
  counts.steps = steps;
  return counts;
}

std::string content_of(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(Metrics, AddUpOverRuns) {
  TempFolder folder;
  const std::string path = folder / "m.prom";
  {
    MetricsFile metrics(path, MetricsInfo());
    metrics.set_requests(5, 2);
    metrics.add_done(1);
    metrics.set_run(counters(3));
    metrics.set_run(counters(4));
    metrics.add_run(counters(5));
    metrics.set_run(counters(2));
  }
  const auto samples = parse_metrics(content_of(path));
  EXPECT_EQ(samples.at("ptrt_steps_total{replica=\"0\"}"), 7);
  EXPECT_EQ(samples.at("ptrt_requests_done"), 3);
  EXPECT_EQ(samples.at("ptrt_running"), 0);
}

// A job does without them.
TEST(Metrics, MayBeImpossibleToWrite) {
  TempFolder folder;
  MetricsFile metrics(folder / "none/m.prom", MetricsInfo(), std::chrono::milliseconds(1));
  metrics.set_requests(1, 0);
}

}  // namespace
}  // namespace ptrt::testing
