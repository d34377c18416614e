#include "launch/commands/request_run.h"

#include <utility>

#include "launch/job/process.h"
#include "launch/jsonl/answer_tokens.h"
#include "launch/jsonl/result_lines.h"
#include "launch/jsonl/result_timings.h"
#include "runtime/job/fault.h"

namespace ptrt {
namespace {

RequestTiming timing_of(const Completion& completion) {
  return {completion.prompt_tokens,
          generated_tokens(completion),
          completion.first_token_s,
          completion.finish_s,
          {},
          1 + std::ssize(completion.more)};
}

// Called right after the completion got its times.
std::chrono::steady_clock::time_point start_of_engine(const Completion& completion) {
  const std::chrono::duration<double> since(completion.finish_s);
  return std::chrono::steady_clock::now() -
         std::chrono::duration_cast<std::chrono::steady_clock::duration>(since);
}

}  // namespace

ResultCollector::Result RequestRun::format(const Completion& completion) {
  const auto [taken, put] = inbox_.take_out(completion.request);
  const auto& [number, line, request] = *taken;
  std::string result = options_.task == Task::score
                           ? score_result(line, request, completion)
                           : generate_result(line, request, completion, session_.tokenizer().tokenizer.get());
  if (options_.timings && !completion.failed()) {
    const double put_s = std::chrono::duration<double>(put - started_.load()).count();
    result =
        with_timings(std::move(result), is_openai_answer(line, options_.task), timings_of(completion, put_s));
  }
  return {number, std::move(result)};
}

void RequestRun::open_desk() {
  const Placement& placement = session_.plan().placement;
  const RequestDealer::Options deal{.replicas = placement.replicas,
                                    .max_batch = options_.run.max_batch,
                                    .requests = supply_->requests,
                                    .by_prefix = options_.run.prefix_cache};
  RequestDesk::Hooks hooks{.rejected = supply_->rejected, .stop_requested = stop_signal_received};
  desk_.emplace(job_, RequestDealer(supply_->source, deal, RequestDealer::Clock::now()), inbox_,
                placement.replicas, placement.replica_ranks, std::move(hooks));
}

// What the result thread of a replica's first rank does.
ResultCollector::Hooks RequestRun::thread_hooks() {
  ResultCollector::Hooks hooks{.format = [this](const Completion& completion) { return format(completion); }};
  hooks.failed = [this](std::exception_ptr error) { inbox_.fail(std::move(error)); };
  if (!desk_) {
    hooks.order = [this](std::string_view message) { return inbox_.put_message(message); };
    return hooks;
  }
  hooks.store = [this](std::span<const ResultCollector::Result> results, int from) {
    supply_->store(results);
    desk_->finished(results, from);
  };
  hooks.turn = [this] {
    inbox_.sign_of_life();
    return desk_->turn();
  };
  hooks.awaits_input = supply_->awaits_input;
  hooks.left = [this](int from) { desk_->left(from); };
  return hooks;
}

RankReport RequestRun::run(std::optional<RequestSupply> supply) {
  supply_ = std::move(supply);
  const Placement& placement = session_.plan().placement;
  RankReport report;
  report.leads_replica = placement.leads_replica();
  TimingSample timings(report);
  if (supply_) open_desk();
  std::optional<ResultCollector> collector;
  if (placement.leads_replica())
    collector.emplace(job_, thread_hooks(), desk_ ? static_cast<int>(placement.replicas - 1) : 0,
                      session_.plan().cores.units());
  Engine::Hooks hooks;
  hooks.stop_requested = stop_signal_received;
  hooks.completed = [&, known = false](Completion&& completion) mutable {
    if (!collector) return;
    if (!std::exchange(known, true)) started_ = start_of_engine(completion);
    if (completion.failed())
      report.failed++;
    else
      timings.add(timing_of(completion));
    collector->deliver(std::move(completion));
  };
  session_.run(options_.task, collector ? &inbox_ : nullptr, hooks);
  fault_point("finish");
  enter_phase(job_, "collecting the results", true);
  if (collector) collector->finish();
  report.counters = session_.engine().counters();
  return report;
}

}  // namespace ptrt
