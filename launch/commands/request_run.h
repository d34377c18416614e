// One run of the engines over requests that rank 0 reads: they are dealt to the replicas, and their results come back.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "launch/jsonl/request_desk.h"
#include "launch/jsonl/request_inbox.h"
#include "launch/jsonl/result_collector.h"
#include "launch/options/command_options.h"
#include "launch/session/model_session.h"
#include "runtime/serving/metrics.h"

namespace ptrt {

// What rank 0 adds; called by its result thread alone.
struct RequestSupply {
  RequestDealer::Source source;
  std::int64_t requests = 0;  // that it gives in all, or the largest number
  // Gets the results, and lines that cannot be run, in the order of the file.
  std::function<void(std::span<const ResultCollector::Result>)> store;
  std::function<void(std::span<const StreamedLine>)> rejected;
  // May be empty: whether the source may have more although it had nothing.
  std::function<bool()> awaits_input = {};
};

class RequestRun {
 public:
  RequestRun(const BatchOptions& options, JobComm& job, ModelSession& session)
      : options_(options), job_(job), session_(session) {}

  // Collective; `supply` on rank 0 alone. Returns this rank's report when all results are stored. The engines' end
  // is where a signal stops the run.
  RankReport run(std::optional<RequestSupply> supply);

 private:
  ResultCollector::Result format(const Completion& completion);
  void open_desk();
  ResultCollector::Hooks thread_hooks();

  const BatchOptions& options_;
  JobComm& job_;
  ModelSession& session_;
  RequestInbox inbox_;  // of this replica, on its first rank
  // The engine, whose times count from there; known with the first completion.
  std::atomic<std::chrono::steady_clock::time_point> started_ = std::chrono::steady_clock::time_point();
  std::optional<RequestSupply> supply_;
  std::optional<RequestDesk> desk_;
};

}  // namespace ptrt
