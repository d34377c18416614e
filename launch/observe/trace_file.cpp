#include "launch/observe/trace_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/base/output_file.h"
#include "launch/job/standard_streams.h"
#include "runtime/comm/clock_offsets.h"

namespace ptrt {
namespace {

constexpr std::size_t kMostEvents = std::size_t{1} << 20;  // of all ranks: a file of about 100 MB
constexpr std::size_t kLeastEvents = std::size_t{1} << 8;

std::size_t most_events(int ranks) {
  return std::max(kLeastEvents, kMostEvents / static_cast<std::size_t>(ranks));
}

std::string quoted(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

double microseconds(std::int64_t ns) {
  return static_cast<double>(ns) * 1e-3;
}

}  // namespace

TraceFile::TraceFile(JobComm& job, std::string path)
    : job_(job),
      path_(std::move(path)),
      tracer_(most_events(job.size())),
      zero_ns_(std::stoll(job.broadcast(std::to_string(now_ns())))),
      start_(compare_clocks()) {}

TraceFile::Offset TraceFile::compare_clocks() const {
  if (job_.size() == 1) return {now_ns(), 0};
  const auto all = job_.split(0, Waiting::yielding);
  const ClockOffsets clocks(*all);
  return {now_ns(), -clocks.to_mine(0, 0)};
}

// Between the two comparisons the clocks may have drifted apart, at a constant rate.
std::string TraceFile::events_json(const std::string& name, const Offset& end) const {
  const double drift = end.at_ns == start_.at_ns ? 0
                                                 : static_cast<double>(end.ns - start_.ns) /
                                                       static_cast<double>(end.at_ns - start_.at_ns);
  const auto aligned = [&](std::int64_t ns) {
    return ns - zero_ns_ + start_.ns +
           static_cast<std::int64_t>(drift * static_cast<double>(ns - start_.at_ns));
  };
  const int rank = job_.rank();
  std::string text = fmt::format(
      R"({{"name":"process_name","ph":"M","pid":{0},"tid":0,"args":{{"name":{1}}}}},
{{"name":"process_sort_index","ph":"M","pid":{0},"tid":0,"args":{{"sort_index":{0}}}}})",
      rank, quoted(name));
  auto out = std::back_inserter(text);
  for (const TraceEvent& event : tracer_.events()) {
    fmt::format_to(out,
                   ",\n{{\"name\":\"{}\",\"ph\":\"X\",\"pid\":{},\"tid\":{},\"ts\":{:.3f},\"dur\":{:.3f}",
                   event.name, rank, event.thread, microseconds(aligned(event.start_ns)),
                   microseconds(event.end_ns - event.start_ns));
    if (event.detail != nullptr) fmt::format_to(out, ",\"args\":{{\"{}\":{}}}", event.detail, event.value);
    text += '}';
  }
  if (tracer_.dropped() > 0)
    fmt::format_to(out,
                   ",\n{{\"name\":\"{} events more were not kept\",\"ph\":\"i\",\"s\":\"p\",\"pid\":{},"
                   "\"tid\":0,\"ts\":{:.3f}}}",
                   tracer_.dropped(), rank, microseconds(aligned(tracer_.events().back().end_ns)));
  return text;
}

void TraceFile::write(const std::string& name) {
  const std::vector<std::string> ranks = job_.gather(events_json(name, compare_clocks()));
  if (job_.rank() != 0) return;
  try {
    OutputFile file(path_);
    file.write("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n");
    for (std::size_t rank = 0; rank < ranks.size(); rank++) {
      if (rank > 0) file.write(",\n");
      file.write(ranks[rank]);
    }
    file.write("\n]}\n");
    file.publish();
  } catch (const Error& error) {
    say(fmt::format("ptrt: warning: the trace was not written: {}\n", error.what()));
  }
}

}  // namespace ptrt
