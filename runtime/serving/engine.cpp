#include "runtime/serving/engine.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "kernels/base/error.h"
#include "runtime/job/fault.h"
#include "runtime/requests/request_draw.h"
#include "runtime/serving/engine_run.h"

namespace ptrt {
namespace {

constexpr auto kReportEvery = std::chrono::seconds(1);

// Rows whose logits are computed together: bounds the logits' memory, and keeps decode batches in
// one product.
std::int64_t logit_rows(const EngineOptions& options) {
  return std::max<std::int64_t>(options.max_batch, 64);
}

// The ranks that share a track bring one part each.
std::unique_ptr<AllReduce> make_tensor_parallel_all_reduce(const EngineComms& comms, Backend& backend,
                                                           StepState& state, std::int64_t values) {
  if (comms.track == nullptr) return nullptr;
  return make_all_reduce(*comms.track, backend, state, 1, values, comms.all_reduce);
}

// Nothing is asked of the model: no forward pass. One token has nothing before it to be scored by.
bool needs_no_step(Task task, const Request& request) {
  const bool scores = task == Task::score || request.prompt_logprobs >= 0;
  return (task == Task::score || request.max_tokens == 0) && (!scores || request.tokens.size() == 1);
}

void complete_without_step(std::int64_t number, const Request& request, double now_s,
                           const Engine::Hooks& hooks) {
  Completion empty;
  empty.admitted_s = empty.first_token_s = empty.finish_s = now_s;
  empty.request = number;
  empty.prompt_tokens = std::ssize(request.tokens);
  if (hooks.completed) hooks.completed(std::move(empty));
}

}  // namespace

WorkLimits work_limits(const ModelConfig& rank_config, std::int64_t tracks, const EngineOptions& options) {
  return {.tracks = tracks,
          .rows = options.max_rows,
          .logit_rows = logit_rows(options),
          .sequences = options.max_batch + 1,  // the spare slot
          .context = rank_config.max_context,
          .heads = rank_config.heads,
          .head_dim = rank_config.head_dim,
          .experts = rank_config.moe ? rank_config.moe->experts : 0,
          .top_k = rank_config.moe ? rank_config.moe->top_k : 0,
          .vocab = rank_config.vocab_size};
}

Engine::Engine(const ModelConfig& config, const ModelConfig& rank_config, const TrackShard& shard,
               Backend& backend, const EngineComms& comms, const Placement& placement,
               const Tokenizer* tokenizer, const EngineOptions& options)
    : config_(config),
      backend_(backend),
      tokenizer_(tokenizer),
      masks_(tokenizer, config.vocab_size, config.eos_token_ids),
      options_(options),
      steps_ahead_(std::min(backend.traits().steps_ahead, options.steps_ahead)),
      // Recorded steps are filled up with rows that need a page.
      cache_(backend, rank_config, shard.tracks, options.kv_pages + (backend.traits().records_steps ? 1 : 0),
             options.kv_dtype),
      replica_comm_(comms.replica),
      fusion_(comms.fusion, backend, state_, config, placement, options.max_rows, comms.all_reduce),
      tensor_parallel_all_reduce_(make_tensor_parallel_all_reduce(
          comms, backend, state_, shard.tracks * options.max_rows * config.hidden_size)),
      head_(config, shard, backend, comms.replica, fusion_.device_group(), logit_rows(options)),
      forward_(rank_config, shard, backend, fusion_, tensor_parallel_all_reduce_.get(), head_, cache_,
               options.max_rows, logit_rows(options)),
      tracer_(comms.all_reduce.tracer),
      leads_(placement.leads_replica()) {
  PTRT_CHECK(options.max_rows >= options.max_batch);
  backend.reserve(work_limits(rank_config, shard.tracks, options));
  const auto rows = static_cast<std::size_t>(logit_rows(options));
  for (auto* list : {&wanted_rows_, &wanted_order_})
    list->reserve(static_cast<std::size_t>(options.max_rows));
  targets_.resize(rows);
  sample_params_.resize(rows);
  row_edits_.resize(rows);
  sampled_.resize(rows);
  top_counts_.resize(rows);
  top_.resize(rows);
  scored_.resize(rows);
}

bool Engine::run(Task task, std::span<const Request> requests, std::span<const std::int64_t> order,
                 const Hooks& hooks) {
  std::vector<std::int64_t> scheduled;
  std::vector<double> arrivals_s;
  for (const std::int64_t i : order) {
    const Request& request = requests[static_cast<std::size_t>(i)];
    if (needs_no_step(task, request)) {
      complete_without_step(i, request, 0, hooks);
      continue;
    }
    scheduled.push_back(i);
    arrivals_s.push_back(request.arrival_s);
  }
  Scheduler scheduler(scheduler_limits(), task, requests, scheduled);
  const auto start = EngineClock::now();
  Run run{task,
          hooks,
          std::move(scheduler),
          start,
          ReplicaSignals(replica_comm_, leads_, start, std::move(arrivals_s), hooks.stop_requested),
          StepPipeline(options_.max_batch)};
  if (run.signals.has_arrivals()) run.scheduler.set_arrived(0);
  return run_steps(run);
}

bool Engine::run(Task task, RequestSource* source, const Hooks& hooks) {
  PTRT_CHECK((source != nullptr) == leads_);
  RequestDraw draw(replica_comm_, source);
  Run run{task,
          hooks,
          Scheduler(scheduler_limits(), task),
          EngineClock::now(),
          ReplicaSignals(replica_comm_, leads_, draw, hooks.stop_requested),
          StepPipeline(options_.max_batch)};
  return run_steps(run);
}

SchedulerLimits Engine::scheduler_limits() const {
  return {options_.max_batch,  options_.max_rows,     options_.kv_pages,
          config_.max_context, options_.prefix_cache, forward_.max_logit_rows()};
}

bool Engine::run_steps(Run& run) {
  counters_ = {};
  counter_sources().reset();
  run.scheduler.set_drafters(options_.drafters);
  while (!run.done() && !run.signals.stop()) {
    if (run.scheduler.has_step() && !must_retire_first(run))
      run_step(run);
    else if (run.pipeline.in_flight() > 0)
      retire_step(run);
    else
      wait_for_requests(run);
  }
  while (run.pipeline.in_flight() > 0) retire_step(run);
  counters_.elapsed_s = seconds_since(run.start);
  count_schedule(run, counters_);
  counter_sources().collect(counters_);
  return run.done();
}

// What is asked of the next step may depend on the tokens of those in flight, or wait for the backend.
bool Engine::must_retire_first(const Run& run) const {
  return run.pipeline.decides_edits() || (run.pipeline.in_flight() > 0 && run.scheduler.may_score_prompts());
}

// Steps are counted and numbered alike on all ranks; the header of each is that of a rank's
// messages.
void Engine::run_step(Run& run) {
  state_.header = {.step = step_number_++, .digest = digest_.value(), .flags = run.signals.flags_to_send()};
  fusion_.start_step();
  head_.start_step();
  if (tensor_parallel_all_reduce_) tensor_parallel_all_reduce_->start_step();
  fault_point("step");
  issue_step(run);
  const std::uint64_t ahead = run.task == Task::score ? 0 : static_cast<std::uint64_t>(steps_ahead());
  while (run.pipeline.in_flight() > ahead) retire_step(run);
  if (run.hooks.report) report_counters(run);
  run.signals.receive(state_.header.flags);  // by now the leader's
  adopt_requests(run);
}

void Engine::wait_for_requests(Run& run) {
  backend_.mark_idle();
  run.signals.wait();
  adopt_requests(run);
}

void Engine::adopt_requests(Run& run) {
  if (run.signals.has_arrivals()) run.scheduler.set_arrived(run.signals.arrived());
  for (Request& request : run.signals.drawn()) {
    const std::int64_t line = request.line;
    if (needs_no_step(run.task, request)) {
      complete_without_step(line, request, seconds_since(run.start), run.hooks);
      continue;
    }
    const auto [at, is_new] = run.drawn.emplace(line, std::move(request));
    PTRT_CHECK(is_new);
    run.scheduler.add(line, at->second);
  }
}

std::string Engine::describe_syncs() const {
  return tensor_parallel_all_reduce_ ? tensor_parallel_all_reduce_->describe() : fusion_.describe();
}

void Engine::report_counters(Run& run) {
  const auto now = EngineClock::now();
  if (now - run.reported < kReportEvery) return;
  run.reported = now;
  RunCounters so_far = counters_;
  count_schedule(run, so_far);
  counter_sources().peek(so_far);
  run.hooks.report(so_far);
}

void Engine::count_schedule(const Run& run, RunCounters& counters) const {
  counters.preemptions = static_cast<std::uint64_t>(run.scheduler.preemptions());
  const PrefixCounts& prefixes = run.scheduler.prefix_counts();
  counters.reused_tokens = static_cast<std::uint64_t>(prefixes.reused_tokens);
  counters.cannot_reuse = static_cast<std::uint64_t>(prefixes.wanting_logprobs);
}

CounterSources Engine::counter_sources() {
  return {fusion_, tensor_parallel_all_reduce_.get(), head_, backend_};
}

void Engine::issue_step(Run& run) {
  InFlightStep& step = run.pipeline.issue();
  const StepPlan& plan = run.scheduler.next_step();
  run.scheduler.note_admissions(seconds_since(run.start));
  const TraceSpan span(tracer_, plan.has_prefill() ? "prefill step" : "decode step", "rows",
                       std::ssize(plan.tokens));
  step.prefill_rows = plan.prefill_rows;
  step.draft_rows = plan.draft_rows;
  run_forward(plan, run.scheduler.step_rows());
  if (plan.wanted.empty()) return;
  const std::span<const LogitRow> wanted = sampled_first(plan);
  const std::size_t sampled = wanted.size() - static_cast<std::size_t>(plan.scored);
  if (plan.scored > 0) score_rows(run.task, static_cast<std::int64_t>(sampled), wanted.subspan(sampled));
  if (sampled > 0) sample_rows(run, wanted.first(sampled));
  complete_scored(run, wanted.subspan(sampled));
}

// The wanted rows, which the forward pass then knows in this order too.
std::span<const LogitRow> Engine::sampled_first(const StepPlan& plan) {
  const std::span<const LogitRow> wanted = plan.wanted;
  if (plan.scored == 0 || plan.scored == std::ssize(wanted)) return wanted;
  wanted_order_.resize(wanted.size());
  std::iota(wanted_order_.begin(), wanted_order_.end(), 0);
  std::ranges::stable_partition(wanted_order_,
                                [&](std::int32_t i) { return !wanted[static_cast<std::size_t>(i)].scores; });
  forward_.reorder_wanted(wanted_order_);
  ordered_.clear();
  for (const std::int32_t i : wanted_order_) ordered_.push_back(wanted[static_cast<std::size_t>(i)]);
  return ordered_;
}

void Engine::run_forward(const StepPlan& plan, const StepRows& rows) {
  if (forward_.records() && plan.only_decodes()) return forward_.run_recorded(plan.tokens, rows);
  wanted_rows_.clear();
  for (const LogitRow& row : plan.wanted) wanted_rows_.push_back(row.row);
  forward_.run(plan.tokens, rows, wanted_rows_);
}

void Engine::complete(Run& run, Sequence& sequence, FinishReason reason) {
  Completion completion;
  completion.request = sequence.request;
  completion.prompt_tokens = sequence.prompt_tokens;
  completion.reused_tokens = sequence.reused;
  completion.not_finite_at = sequence.not_finite_at;
  completion.not_finite_in_prompt = sequence.not_finite_in_prompt;
  completion.none_allowed_at = sequence.none_allowed_at;
  completion.finish_reason = reason;
  const auto text = run.texts.find(&sequence);
  if (!completion.failed()) {
    completion.tokens.assign(sequence.tokens.begin() + sequence.prompt_tokens, sequence.tokens.end());
    completion.logprobs = std::move(sequence.logprobs);
    completion.top_logprobs = std::move(sequence.top_logprobs);
    completion.prompt_logprobs = std::move(sequence.prompt_logprobs);
    completion.prompt_top_logprobs = std::move(sequence.prompt_top_logprobs);
    completion.is_greedy = sequence.is_greedy;
    if (text != run.texts.end()) completion.text = text->second.bytes();
  }
  if (text != run.texts.end()) run.texts.erase(text);
  run.rules.erase(&sequence);
  completion.admitted_s = sequence.admitted_s;
  completion.first_token_s = sequence.first_token_s;
  completion.finish_s = seconds_since(run.start);
  completion.gaps_s = std::move(sequence.gaps_s);
  run.pipeline.drop(sequence);
  const std::int64_t samples = sequence.asked->samples, sample = sequence.sample;
  run.scheduler.finish(sequence);
  if (samples == 1) return complete_request(run, std::move(completion));
  SampleGather& gather = run.gathers.try_emplace(completion.request, samples).first->second;
  if (gather.add(sample, std::move(completion))) complete_request(run, gather.take());
}

void Engine::complete_request(Run& run, Completion&& completion) {
  run.gathers.erase(completion.request);
  run.drawn.erase(completion.request);
  if (run.hooks.completed) run.hooks.completed(std::move(completion));
}

}  // namespace ptrt
