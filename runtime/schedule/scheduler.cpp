#include "runtime/schedule/scheduler.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace ptrt {

Scheduler::Scheduler(const SchedulerLimits& limits, Task task, std::span<const Request> requests,
                     std::span<const std::int64_t> order)
    : Scheduler(limits, task) {
  for (const std::int64_t index : order) add(index, requests[static_cast<std::size_t>(index)]);
}

Scheduler::Scheduler(const SchedulerLimits& limits, Task task)
    : limits_(limits), task_(task), table_stride_(pages_for(limits.max_context)), allocator_(limits.pages) {
  PTRT_CHECK(limits.max_batch >= 1 && limits.max_rows >= limits.max_batch);
  for (std::int64_t slot = limits.max_batch - 1; slot >= 0; slot--)
    free_slots_.push_back(static_cast<std::int32_t>(slot));
  page_table_.assign(static_cast<std::size_t>(limits.max_batch * table_stride_), 0);
  page_table_.resize(page_table_.size() + static_cast<std::size_t>(table_stride_),
                     static_cast<std::int32_t>(limits.pages));
  plan_.tokens.reserve(static_cast<std::size_t>(limits.max_rows));
  plan_.positions.reserve(static_cast<std::size_t>(limits.max_rows));
  plan_.slots.reserve(static_cast<std::size_t>(limits.max_rows));
  plan_.wanted.reserve(static_cast<std::size_t>(limits.max_rows));
}

void Scheduler::add(std::int64_t number, const Request& request) {
  PTRT_CHECK(!request.tokens.empty() && pages_for(request.cached_tokens()) <= limits_.pages);
  auto sequence = std::make_unique<Sequence>();
  sequence->request = number;
  sequence->asked = &request;
  sequence->place = added_++;
  sequence->tokens = request.tokens;
  sequence->prompt_tokens = static_cast<std::int64_t>(request.tokens.size());
  sequence->max_tokens = task_ == Task::score ? 0 : request.max_tokens;
  sequence->score_from = request.score_from;
  if (task_ == Task::generate && sequence->scores_prompt()) prompts_to_score_++;
  waiting_.push_back(std::move(sequence));
}

// Tokens to feed before the next one can be sampled: all of them; when none is to be sampled, all but the last,
// which is only a target.
std::int64_t Scheduler::rows_to_cache(const Sequence& sequence) const {
  return static_cast<std::int64_t>(sequence.tokens.size()) - (sequence.max_tokens == 0 ? 1 : 0);
}

// Whether the token after the one at `position` is.
bool Scheduler::is_scored(const Sequence& sequence, std::int64_t position) const {
  if (task_ == Task::score) return position + 1 >= sequence.score_from;
  return sequence.scores_prompt() && position + 1 >= sequence.prompt_planned &&
         position + 1 < sequence.prompt_tokens;
}

bool Scheduler::is_sampled(const Sequence& sequence, std::int64_t position) const {
  return sequence.max_tokens > 0 && position + 1 >= rows_to_cache(sequence);
}

// Of the row that comes next in the plan, if its logits are.
void Scheduler::want_row(Sequence& sequence, std::int64_t position) {
  const bool scored = is_scored(sequence, position);
  if (!scored && !is_sampled(sequence, position)) return;
  plan_.wanted.push_back({static_cast<std::int32_t>(plan_.tokens.size()), &sequence, position, scored});
  plan_.scored += scored ? 1 : 0;
  if (!scored || task_ == Task::score) return;
  sequence.prompt_planned = position + 2;
  if (!sequence.scores_prompt()) prompts_to_score_--;
}

bool Scheduler::in_prefill(const Sequence& sequence) const {
  return sequence.generated() == 0 || rows_to_cache(sequence) - sequence.cached > 1;
}

const StepPlan& Scheduler::next_step() {
  plan_.tokens.clear();
  plan_.positions.clear();
  plan_.slots.clear();
  plan_.wanted.clear();
  plan_.scored = plan_.decode_rows = plan_.prefill_rows = plan_.recomputed_rows = 0;
  plan_decode();
  admit();
  plan_prefill();
  PTRT_CHECK(!plan_.tokens.empty());
  return plan_;
}

// Running sequences with one token to feed come first: a decode step is never held up by a long
// prompt.
void Scheduler::plan_decode() {
  for (std::size_t i = 0; i < running_.size(); i++) {
    Sequence& sequence = *running_[i];
    if (in_prefill(sequence)) continue;
    while (!grow(sequence, sequence.cached + 1)) {
      preempt_newest();
      if (i >= running_.size()) return;  // it was the newest itself
    }
    add_rows(sequence, 1);
    plan_.decode_rows++;
  }
}

// First come, first served. A sequence is admitted when all its tokens so far fit, with a page to
// spare for each running sequence, so that admission does not lead straight to preemption.
void Scheduler::admit() {
  while (!waiting_.empty() && !free_slots_.empty()) {
    Sequence& next = *waiting_.front();
    if (!has_arrived(next)) return;
    const std::int64_t needed = pages_for(rows_to_cache(next));
    if (needed + running() > allocator_.free()) return;
    next.slot = free_slots_.back();
    free_slots_.pop_back();
    next.admitted = admissions_++;
    PTRT_CHECK(grow(next, rows_to_cache(next)));
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

void Scheduler::plan_prefill() {
  for (const auto& sequence : running_) {
    if (!in_prefill(*sequence)) continue;
    const std::int64_t room = limits_.max_rows - static_cast<std::int64_t>(plan_.tokens.size());
    const std::int64_t count = std::min(room, rows_to_cache(*sequence) - sequence->cached);
    if (count <= 0) return;
    const std::int64_t of_prompt =
        std::clamp<std::int64_t>(sequence->prompt_tokens - sequence->cached, 0, count);
    plan_.prefill_rows += of_prompt;
    plan_.recomputed_rows += count - of_prompt;
    add_rows(*sequence, count);
  }
}

void Scheduler::add_rows(Sequence& sequence, std::int64_t count) {
  for (std::int64_t position = sequence.cached; position < sequence.cached + count; position++) {
    want_row(sequence, position);
    plan_.tokens.push_back(sequence.tokens[static_cast<std::size_t>(position)]);
    plan_.positions.push_back(static_cast<std::int32_t>(position));
    plan_.slots.push_back(sequence.slot);
  }
  sequence.cached += count;
}

// Ensures pages for `tokens` tokens. Allocates all that are missing, or none and returns false.
bool Scheduler::grow(Sequence& sequence, std::int64_t tokens) {
  const std::int64_t missing = pages_for(tokens) - static_cast<std::int64_t>(sequence.pages.size());
  if (missing > allocator_.free()) return false;
  for (std::int64_t i = 0; i < missing; i++) {
    const auto at = static_cast<std::size_t>(sequence.slot * table_stride_) + sequence.pages.size();
    sequence.pages.push_back(allocator_.take());
    page_table_[at] = sequence.pages.back();
  }
  return true;
}

// The newest sequence releases its pages and waits at the front; its tokens so far are computed
// again.
void Scheduler::preempt_newest() {
  PTRT_CHECK(!running_.empty());
  auto newest = std::move(running_.back());
  running_.pop_back();
  release(*newest);
  newest->cached = 0;
  waiting_.push_front(std::move(newest));
  preemptions_++;
}

void Scheduler::release(Sequence& sequence) {
  allocator_.give_back(sequence.pages);
  free_slots_.push_back(sequence.slot);
  sequence.slot = -1;
}

void Scheduler::expect_token(Sequence& sequence, std::int32_t placeholder) {
  sequence.tokens.push_back(placeholder);
  if (sequence.generated() < sequence.max_tokens) return;
  release(sequence);
  ending_.push_back(take_out(sequence));
}

// A sequence may finish while it runs, when its last token has come, or while it waits after a
// preemption.
void Scheduler::finish(Sequence& sequence) {
  if (sequence.slot >= 0) release(sequence);
  if (task_ == Task::generate && sequence.scores_prompt()) prompts_to_score_--;
  take_out(sequence);
}

std::unique_ptr<Sequence> Scheduler::take_out(Sequence& sequence) {
  const auto from = [&](auto& list) -> std::unique_ptr<Sequence> {
    const auto at = std::ranges::find_if(list, [&](const auto& other) { return other.get() == &sequence; });
    if (at == list.end()) return nullptr;
    std::unique_ptr<Sequence> found = std::move(*at);
    list.erase(at);
    return found;
  };
  std::unique_ptr<Sequence> found = from(running_);
  if (found == nullptr) found = from(ending_);
  if (found == nullptr) found = from(waiting_);
  PTRT_CHECK(found != nullptr);
  return found;
}

StepRows Scheduler::step_rows() const {
  return {plan_.positions, plan_.slots, page_table_, table_stride_,
          static_cast<std::int32_t>(limits_.max_batch)};
}

}  // namespace ptrt
