// Names of log files, and the metrics as a Prometheus collector reads them.
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>

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

// Every sample by name and labels. Each name has one HELP and one TYPE before its samples, which stand together.
std::map<std::string, double> parse_metrics(const std::string& text) {
  static const std::regex sample(
      R"re(([a-z_]+)(\{[a-z_]+="(?:[^"\\\n]|\\.)*"(?:,[a-z_]+="(?:[^"\\\n]|\\.)*")*\})? (\S+))re");
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
    std::smatch found;
    if (!std::regex_match(line, found, sample)) {
      ADD_FAILURE() << line;
      continue;
    }
    EXPECT_EQ(found[1], current) << line;
    EXPECT_TRUE(samples.emplace(found[1].str() + found[2].str(), std::stod(found[3])).second) << line;
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
