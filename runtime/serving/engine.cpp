#include "runtime/serving/engine.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <unordered_map>

#include "kernels/base/error.h"
#include "runtime/comm/fault.h"

namespace ptrt {
namespace {

using Clock = std::chrono::steady_clock;
// In StepHeader::flags: arrivals so far, above the flags themselves.
constexpr int kArrivedShift = 8;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Rows whose logits are computed together: bounds the logits' memory, and keeps decode batches in one
// product.
std::int64_t logit_rows(const EngineOptions& options) {
  return std::max<std::int64_t>(options.max_batch, 64);
}

// The ranks that share a track bring one part each.
std::unique_ptr<AllReduce> make_tensor_parallel_all_reduce(const EngineComms& comms, Backend& backend,
                                                           StepState& state, std::int64_t values) {
  if (comms.track == nullptr) return nullptr;
  return make_all_reduce(*comms.track, backend, state, 1, values, comms.all_reduce);
}

std::uint64_t mix(std::uint64_t digest, std::uint64_t value) {
  // The finaliser of splitmix64 over a running sum.
  std::uint64_t z = digest + 0x9e3779b97f4a7c15ull + value;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

}  // namespace

// A step whose tokens have not been taken.
struct Engine::StepUnderWay {
  struct Row {
    Sequence* sequence = nullptr;  // null: found finished since; the result is dropped
    std::size_t place = 0;         // of the token in it
  };
  std::vector<Row> rows;
  Clock::time_point start;
  std::int64_t prefill_rows = 0;
};

// State of one call of run().
struct Engine::Run {
  Task task;
  std::span<const Request> requests;
  const Hooks& hooks;
  Scheduler scheduler;
  Clock::time_point start = Clock::now();
  std::unordered_map<const Sequence*, OutputText> texts = {};
  std::vector<double> arrivals_s = {};  // in order; empty where all are there at the start
  // Steps begun and steps whose tokens were taken; those between, at most two, are in steps_under_way[n % 2].
  std::uint64_t begun = 0, taken = 0;
  StepUnderWay steps_under_way[2] = {};
  Clock::time_point last_taken = {};

  const Request& request_of(const Sequence& sequence) const {
    return requests[static_cast<std::size_t>(sequence.request)];
  }
};

WorkLimits work_limits(const ModelConfig& mine, std::int64_t tracks, const EngineOptions& options) {
  return {.tracks = tracks,
          .rows = options.max_rows,
          .logit_rows = logit_rows(options),
          .sequences = options.max_batch + 1,  // the spare slot
          .context = mine.max_context,
          .heads = mine.heads,
          .head_dim = mine.head_dim,
          .experts = mine.moe ? mine.moe->experts : 0,
          .top_k = mine.moe ? mine.moe->top_k : 0};
}

Engine::Engine(const ModelConfig& config, const ModelConfig& mine, const TrackShard& shard, Backend& backend,
               const EngineComms& comms, const Placement& placement, const Tokenizer* tokenizer,
               const EngineOptions& options)
    : config_(config),
      backend_(backend),
      tokenizer_(tokenizer),
      options_(options),
      steps_ahead_(shard.head_rows.count > 0 ? 0
                                             : std::min(backend.traits().steps_ahead, options.steps_ahead)),
      // Recorded steps are filled up with rows that need a page.
      cache_(backend, mine, shard.tracks, options.kv_pages + (backend.traits().records_steps ? 1 : 0),
             options.kv_dtype),
      replica_comm_(comms.replica),
      fusion_(comms.fusion, backend, state_, config, placement, options.max_rows, comms.all_reduce),
      tensor_parallel_all_reduce_(make_tensor_parallel_all_reduce(
          comms, backend, state_, shard.tracks * options.max_rows * config.hidden_size)),
      head_(config, shard, backend, comms.replica, logit_rows(options)),
      forward_(mine, shard, backend, fusion_, tensor_parallel_all_reduce_.get(), head_, cache_,
               options.max_rows, logit_rows(options)),
      leads_(placement.leads_replica()) {
  PTRT_CHECK(options.max_rows >= options.max_batch);
  backend.reserve(work_limits(mine, shard.tracks, options));
  const auto rows = static_cast<std::size_t>(logit_rows(options));
  wanted_rows_.reserve(static_cast<std::size_t>(options.max_rows));
  targets_.resize(rows);
  sample_params_.resize(rows);
  sampled_.resize(rows);
  log_probs_.resize(rows);
}

bool Engine::run(Task task, std::span<const Request> requests, std::span<const std::int64_t> order,
                 const Hooks& hooks) {
  // One token has nothing before it to be scored by: no forward pass.
  std::vector<std::int64_t> scheduled;
  for (const std::int64_t i : order) {
    const bool trivial = task == Task::score && requests[static_cast<std::size_t>(i)].tokens.size() == 1;
    if (!trivial) {
      scheduled.push_back(i);
    } else if (hooks.completed) {
      Completion completion;
      completion.request = i;
      hooks.completed(std::move(completion));
    }
  }
  const SchedulerLimits limits{options_.max_batch, options_.max_rows, options_.kv_pages, config_.max_context};
  Run run{task, requests, hooks, Scheduler(limits, task, requests, scheduled)};
  for (const std::int64_t i : scheduled)
    run.arrivals_s.push_back(requests[static_cast<std::size_t>(i)].arrival_s);
  PTRT_CHECK(std::ranges::is_sorted(run.arrivals_s));
  if (run.arrivals_s.empty() || run.arrivals_s.back() <= 0) run.arrivals_s.clear();
  if (!run.arrivals_s.empty()) run.scheduler.set_arrived(0);
  for (StepUnderWay& step : run.steps_under_way)
    step.rows.reserve(static_cast<std::size_t>(options_.max_batch));
  counters_ = {};
  fusion_.reset_stats();
  if (tensor_parallel_all_reduce_) tensor_parallel_all_reduce_->stats() = {};
  head_.reset_stats();
  backend_.mark_idle();
  backend_.take_replay_times();
  bool stopped = false;
  while (!run.scheduler.done() && !stopped) {
    if (run.scheduler.idle()) {
      if (run.taken < run.begun) {
        take_tokens(run);
        continue;
      }
      wait_for_arrivals(run);
      stopped = (state_.header.flags & kStopFlag) != 0;
      continue;
    }
    const bool stop = leads_ && hooks.stop_requested && hooks.stop_requested();
    const auto arrived = static_cast<std::uint64_t>(leads_ ? arrivals(run) : 0);
    state_.header = {step_number_, digest_, 0, (stop ? kStopFlag : 0) | arrived << kArrivedShift};
    fusion_.start_step();
    if (tensor_parallel_all_reduce_) tensor_parallel_all_reduce_->start_step();
    step(run);
    step_number_++;
    stopped = (state_.header.flags & kStopFlag) != 0;
    if (!run.arrivals_s.empty())
      run.scheduler.set_arrived(static_cast<std::int64_t>(state_.header.flags >> kArrivedShift));
  }
  while (run.taken < run.begun) take_tokens(run);
  counters_.elapsed_s = seconds_since(run.start);
  counters_.preemptions = static_cast<std::uint64_t>(run.scheduler.preemptions());
  count_syncs();
  counters_.head_exchanges = head_.stats().exchanges;
  counters_.head_bytes = head_.stats().bytes_sent;
  counters_.head_s = head_.stats().seconds;
  if (const auto times = backend_.take_replay_times()) {
    counters_.replay_busy_s = times->busy_s;
    counters_.replay_idle_s = times->idle_s;
  }
  return run.scheduler.done();
}

std::int64_t Engine::arrivals(const Run& run) const {
  return std::ranges::upper_bound(run.arrivals_s, seconds_since(run.start)) - run.arrivals_s.begin();
}

// Every rank knows when the next request is due and sleeps until then, by its own clock; then the replica's
// first rank says what has come, and whether it was asked to stop.
void Engine::wait_for_arrivals(Run& run) {
  backend_.mark_idle();
  constexpr double kNap = 0.02;  // seconds: a signal is to be heard soon
  const auto next = std::ranges::upper_bound(run.arrivals_s, seconds_since(run.start));
  const double left = next == run.arrivals_s.end() ? 0 : *next - seconds_since(run.start);
  std::this_thread::sleep_for(std::chrono::duration<double>(std::clamp(left, 0.0, kNap)));
  const bool stop = leads_ && run.hooks.stop_requested && run.hooks.stop_requested();
  const std::uint64_t mine = (stop ? kStopFlag : 0) | static_cast<std::uint64_t>(arrivals(run))
                                                          << kArrivedShift;
  std::vector<std::uint64_t> all(static_cast<std::size_t>(replica_comm_.size()));
  replica_comm_.all_gather(&mine, all.data(), sizeof mine);
  state_.header.flags = all[0];
  run.scheduler.set_arrived(static_cast<std::int64_t>(all[0] >> kArrivedShift));
}

std::string Engine::describe_syncs() const {
  return tensor_parallel_all_reduce_ ? tensor_parallel_all_reduce_->describe() : fusion_.describe();
}

void Engine::count_syncs() {
  fusion_.settle();
  if (tensor_parallel_all_reduce_) tensor_parallel_all_reduce_->settle();
  const auto add = [&](const SyncStats& stats) {
    counters_.sync_bytes += stats.bytes_sent;
    counters_.sync_s += stats.seconds;
    counters_.sync_wait_s += stats.wait_seconds;
    counters_.sync_wait_known &= stats.wait_known;
  };
  counters_.fusions = fusion_.stats().sync_points;
  add(fusion_.stats());
  if (!tensor_parallel_all_reduce_) return;
  counters_.track_sums = tensor_parallel_all_reduce_->stats().sync_points;
  add(tensor_parallel_all_reduce_->stats());
}

void Engine::step(Run& run) {
  fault_point("step");
  StepUnderWay& step = run.steps_under_way[run.begun % 2];
  step.start = Clock::now();
  step.rows.clear();
  const StepPlan& plan = run.scheduler.next_step();
  step.prefill_rows = plan.prefill_rows;
  run_forward(plan, run.scheduler.step_rows());
  run.begun++;
  if (run.task == Task::score) {
    const std::span<const LogitRow> wanted = plan.wanted;
    const auto piece = static_cast<std::size_t>(forward_.max_logit_rows());
    for (std::size_t at = 0; at < wanted.size(); at += piece)
      score_rows(run, static_cast<std::int64_t>(at), wanted.subspan(at, std::min(piece, wanted.size() - at)));
  } else if (!plan.wanted.empty()) {
    sample_rows(run, plan.wanted);
  }
  const std::uint64_t left = run.task == Task::score ? 0 : static_cast<std::uint64_t>(steps_ahead_);
  while (run.begun - run.taken > left) take_tokens(run);
}

void Engine::run_forward(const StepPlan& plan, const StepRows& rows) {
  if (forward_.records() && plan.only_decodes()) return forward_.run_recorded(plan.tokens, rows);
  wanted_rows_.clear();
  for (const LogitRow& row : plan.wanted) wanted_rows_.push_back(row.row);
  forward_.run(plan.tokens, rows, wanted_rows_);
}

void Engine::sample_rows(Run& run, std::span<const LogitRow> rows) {
  StepUnderWay& step = run.steps_under_way[(run.begun - 1) % 2];
  bool greedy = true;
  for (std::size_t r = 0; r < rows.size(); r++) {
    const Sequence& sequence = *rows[r].sequence;
    const Request& request = run.request_of(sequence);
    sample_params_[r] = {request.temperature,
                         request.top_k,
                         request.top_p,
                         request.seed,
                         static_cast<std::uint64_t>(sequence.generated()),
                         request.logprobs};
    greedy &= request.temperature == 0 && !request.logprobs;
  }
  queue_or_sample(greedy, std::ssize(rows));
  for (std::size_t r = 0; r < rows.size(); r++) {
    Sequence& sequence = *rows[r].sequence;
    step.rows.push_back({&sequence, sequence.tokens.size()});
    run.scheduler.expect_token(sequence, token_of_sample(static_cast<std::int32_t>(r)));
  }
}

// All rows in one call: a step wants one row of a sequence at most, and max_logit_rows() takes the batch.
void Engine::queue_or_sample(bool greedy, std::int64_t rows) {
  const auto count = static_cast<std::size_t>(rows);
  const std::span params(sample_params_.data(), count);
  const std::span sampled(sampled_.data(), count);
  if (steps_ahead_ > 0)
    backend_.queue_sample(forward_.logits(0, rows), params);
  else if (greedy && !forward_.has_logits())
    forward_.greedy(0, sampled);
  else
    backend_.sample(forward_.logits(0, rows), params, sampled);
}

void Engine::take_tokens(Run& run) {
  const StepUnderWay& step = run.steps_under_way[run.taken++ % 2];
  const std::uint64_t decoded_before = counters_.decode_tokens;
  const std::span sampled(sampled_.data(), step.rows.size());
  if (steps_ahead_ > 0 && !sampled.empty()) backend_.take_sampled(sampled);
  for (std::size_t r = 0; r < sampled.size(); r++)
    if (const auto [sequence, place] = step.rows[r]; sequence != nullptr)
      accept_token(run, *sequence, place, sampled[r]);
  // A step begun ahead runs from the end of the one before.
  const auto now = Clock::now();
  const double seconds = std::chrono::duration<double>(now - std::max(step.start, run.last_taken)).count();
  run.last_taken = now;
  counters_.steps++;
  counters_.step_s += seconds;
  counters_.prefill_tokens += static_cast<std::uint64_t>(step.prefill_rows);
  if (step.prefill_rows > 0) counters_.prefill_s += seconds;
  if (counters_.decode_tokens > decoded_before) counters_.decode_s += seconds;
}

void Engine::accept_token(Run& run, Sequence& sequence, std::size_t place, const Sampled& sampled) {
  const Request& request = run.request_of(sequence);
  digest_ = mix(mix(digest_, static_cast<std::uint64_t>(sequence.request)),
                static_cast<std::uint64_t>(sampled.token));
  const double now = seconds_since(run.start);
  if (sequence.first_token_s < 0) {
    sequence.first_token_s = now;
  } else {
    counters_.decode_tokens++;
    sequence.gaps_s.push_back(static_cast<float>(now - sequence.last_token_s));
  }
  sequence.last_token_s = now;
  sequence.tokens[place] = sampled.token;
  if (request.logprobs) sequence.logprobs.push_back(sampled.logprob);

  auto& text = run.texts.try_emplace(&sequence, tokenizer_, request.stop).first->second;
  const bool stop_string = text.append(sampled.token);
  const bool eos = !request.ignore_eos && std::ranges::count(config_.eos_token_ids, sampled.token) > 0;
  const bool last = static_cast<std::int64_t>(place) + 1 - sequence.prompt_tokens >= request.max_tokens;
  if (!stop_string && !eos && !last) return;
  sequence.tokens.resize(place + 1);  // without what a step under way is still to bring
  complete(run, sequence, stop_string || eos ? FinishReason::stop : FinishReason::length);
}

// rows[r].position is that of a fed token; its logits score the token after it.
void Engine::score_rows(Run& run, std::int64_t first, std::span<const LogitRow> rows) {
  const Tensor logits = forward_.logits(first, std::ssize(rows));
  for (std::size_t r = 0; r < rows.size(); r++)
    targets_[r] = rows[r].sequence->tokens[static_cast<std::size_t>(rows[r].position) + 1];
  backend_.log_probs(logits, {targets_.data(), rows.size()}, {log_probs_.data(), rows.size()});
  for (std::size_t r = 0; r < rows.size(); r++) {
    Sequence& sequence = *rows[r].sequence;
    const auto position = static_cast<std::size_t>(rows[r].position);
    sequence.logprobs.resize(std::max(sequence.logprobs.size(), position + 1));
    sequence.logprobs[position] = log_probs_[r];
    if (position + 2 != sequence.tokens.size()) continue;
    sequence.first_token_s = seconds_since(run.start);
    complete(run, sequence, FinishReason::length);
  }
}

void Engine::complete(Run& run, Sequence& sequence, FinishReason reason) {
  Completion completion;
  completion.request = sequence.request;
  completion.tokens.assign(sequence.tokens.begin() + sequence.prompt_tokens, sequence.tokens.end());
  completion.logprobs = std::move(sequence.logprobs);
  if (const auto text = run.texts.find(&sequence); text != run.texts.end()) {
    completion.text = text->second.bytes();
    run.texts.erase(text);
  }
  completion.finish_reason = reason;
  completion.first_token_s = sequence.first_token_s;
  completion.finish_s = seconds_since(run.start);
  completion.gaps_s = std::move(sequence.gaps_s);
  for (StepUnderWay& step : run.steps_under_way)
    for (StepUnderWay::Row& row : step.rows)
      if (row.sequence == &sequence) row.sequence = nullptr;
  run.scheduler.finish(sequence);
  if (run.hooks.completed) run.hooks.completed(std::move(completion));
}

std::vector<std::int64_t> requests_of_replica(std::span<const Request> requests,
                                              std::span<const std::int64_t> pending, std::int64_t replicas,
                                              std::int64_t replica) {
  std::vector<std::int64_t> by_cost(pending.begin(), pending.end());
  if (replicas == 1) return by_cost;
  const auto cost = [&](std::int64_t i) { return requests[static_cast<std::size_t>(i)].cached_tokens(); };
  std::ranges::stable_sort(by_cost, [&](std::int64_t a, std::int64_t b) { return cost(a) > cost(b); });
  std::vector<std::int64_t> load(static_cast<std::size_t>(replicas), 0), mine;
  for (const std::int64_t i : by_cost) {
    const auto least = std::ranges::min_element(load) - load.begin();
    load[static_cast<std::size_t>(least)] += cost(i) + 1;
    if (least == replica) mine.push_back(i);
  }
  std::ranges::sort(mine);
  return mine;
}

}  // namespace ptrt
