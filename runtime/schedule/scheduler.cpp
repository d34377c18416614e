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
    : limits_(limits), task_(task), table_stride_(pages_for(limits.max_context)), cache_(limits.pages) {
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
  PTRT_CHECK(task_ == Task::score || request.max_tokens > 0 || request.prompt_logprobs >= 0);
  PTRT_CHECK(request.samples == 1 || (request.samples > 1 && request.max_tokens > 0));
  for (std::int64_t sample = 0; sample < request.samples; sample++) {
    auto sequence = std::make_unique<Sequence>();
    sequence->request = number;
    sequence->asked = &request;
    sequence->sample = sample;
    sequence->place = added_;
    sequence->tokens = request.tokens;
    sequence->prompt_tokens = static_cast<std::int64_t>(request.tokens.size());
    sequence->max_tokens = task_ == Task::score ? 0 : request.max_tokens;
    sequence->score_from = request.score_from;
    if (task_ == Task::generate && sequence->scores_prompt()) prompts_to_score_++;
    waiting_.push_back(std::move(sequence));
  }
  added_++;
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
  const std::int64_t draft = position - std::ssize(sequence.tokens);
  plan_.wanted.push_back({static_cast<std::int32_t>(plan_.tokens.size()), &sequence, position, scored,
                          draft < 0 ? kNoDraft : sequence.drafts[static_cast<std::size_t>(draft)]});
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
  plan_.scored = plan_.decode_rows = plan_.draft_rows = plan_.prefill_rows = plan_.recomputed_rows = 0;
  plan_decode();
  admit();
  plan_prefill();
  PTRT_CHECK(!plan_.tokens.empty());
  return plan_;
}

// Running sequences with one token to feed come first: a decode step is never held up by a long
// prompt.
void Scheduler::plan_decode() {
  auto left = std::ranges::count_if(running_, [&](const auto& sequence) { return !in_prefill(*sequence); });
  std::int64_t room = draft_room(left);
  for (std::size_t i = 0; i < running_.size(); i++) {
    Sequence& sequence = *running_[i];
    if (in_prefill(sequence)) continue;
    while (!grow(sequence, sequence.cached + 1)) {
      preempt_newest();
      if (i >= running_.size()) return;  // it was the newest itself
    }
    if (room > 0) propose_drafts(sequence, room / left);
    const auto drafts = std::ssize(sequence.drafts);
    add_rows(sequence, 1 + drafts);
    plan_.decode_rows++;
    plan_.draft_rows += drafts;
    room -= drafts;
    left--;
  }
}

// Rows that drafts may take in the next step, of which so many sequences decode. Half of the step's other rows is
// left to prompts.
std::int64_t Scheduler::draft_room(std::int64_t decoding) const {
  if (!make_drafter_ || task_ == Task::score || decoding == 0) return 0;
  const auto to_come = std::min(std::ssize(waiting_), std::ssize(free_slots_));
  return std::min({kMostRowsWithDrafts - decoding, (limits_.max_rows - decoding) / 2,
                   limits_.max_wanted - running() - to_come});
}

// None takes a page that another running sequence may soon need. The last token of max_tokens is never fed, and the
// row before it has no drafts after it.
void Scheduler::propose_drafts(Sequence& sequence, std::int64_t most) {
  if (sequence.drafter == nullptr) sequence.drafter = make_drafter_(*sequence.asked);
  if (sequence.drafter == nullptr) return;
  PTRT_CHECK(sequence.tokens.back() >= 0 && sequence.drafts.empty());
  const std::int64_t spare = std::max<std::int64_t>(cache_.free() - running(), 0);
  const std::int64_t cells = (std::ssize(sequence.pages) + spare) * kPageTokens;
  most = std::min({most, sequence.max_tokens - sequence.generated() - 1, cells - sequence.cached - 1});
  if (most <= 0) return;
  sequence.drafter->propose(sequence.tokens, sequence.prompt_tokens, most, sequence.drafts);
  PTRT_CHECK(std::ssize(sequence.drafts) <= most &&
             grow(sequence, sequence.cached + 1 + std::ssize(sequence.drafts)));
}

void Scheduler::settle_drafts(Sequence& sequence) {
  const auto drafts = std::ssize(sequence.drafts);
  if (drafts == 0) return;
  const std::int64_t wrong = sequence.cached - (std::ssize(sequence.tokens) - 1);
  PTRT_CHECK(0 <= wrong && wrong <= drafts);
  sequence.cached -= wrong;
  sequence.drafter->learn(drafts, drafts - wrong);
  sequence.drafts.clear();
}

// First come, first served. A sequence is admitted when all its tokens so far fit, with a page to
// spare for each running sequence, so that admission does not lead straight to preemption.
void Scheduler::admit() {
  while (!waiting_.empty() && !free_slots_.empty() && has_arrived(*waiting_.front()) && admit_next()) {
  }
}

bool Scheduler::admit_next() {
  Sequence& next = *waiting_.front();
  if (&next == refused_ && cache_.gains() == refused_at_) return false;
  const auto root = root_of(next);
  const auto tokens = shareable(next);
  const PrefixCache::Match match =
      root ? cache_.match(*root, tokens, most_reused(next)) : PrefixCache::Match{};
  const std::int64_t needed = pages_for(rows_to_cache(next)) - match.pages + match.unused;
  if (needed + running() > cache_.free()) {
    refused_ = &next;
    refused_at_ = cache_.gains();
    return false;
  }
  next.slot = free_slots_.back();
  free_slots_.pop_back();
  if (match.pages > 0) cache_.share(*root, tokens, match.pages, next.pages);
  enter_pages(next, 0);
  next.cached = match.pages * kPageTokens;
  PTRT_CHECK(grow(next, rows_to_cache(next)));
  next.named = root ? cache_.name(*root, tokens, next.pages) * kPageTokens : 0;
  if (next.admissions++ == 0) count_reuse(next);
  running_.push_back(std::move(waiting_.front()));
  waiting_.pop_front();
  return true;
}

std::optional<PrefixCache::Root> Scheduler::root_of(const Sequence& sequence) const {
  if (limits_.prefix_cache) return -1;
  if (sequence.asked->samples > 1) return -2 - sequence.request;
  return std::nullopt;
}

std::span<const std::int32_t> Scheduler::shareable(const Sequence& sequence) const {
  return std::span(sequence.tokens)
      .first(static_cast<std::size_t>(std::min(sequence.prompt_tokens, rows_to_cache(sequence))));
}

// Pages; they end before the first row whose logits are wanted. After a preemption one row more is fed: a single
// one would be a row that decodes, which a step plans before it admits.
std::int64_t Scheduler::most_reused(const Sequence& sequence) const {
  std::int64_t tokens = rows_to_cache(sequence) - (sequence.generated() > 0 ? 2 : 1);
  if (task_ == Task::score) tokens = std::min(tokens, sequence.score_from - 1);
  if (sequence.scores_prompt()) tokens = std::min(tokens, sequence.prompt_planned - 1);
  return tokens / kPageTokens;
}

void Scheduler::count_reuse(Sequence& sequence) {
  sequence.reused = sequence.cached;
  prefix_counts_.reused_tokens += sequence.reused;
  const bool is_long = rows_to_cache(sequence) > kPageTokens;
  if (limits_.prefix_cache && is_long && most_reused(sequence) == 0) prefix_counts_.wanting_logprobs++;
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
    const std::int64_t draft = position - std::ssize(sequence.tokens);
    plan_.tokens.push_back(draft < 0 ? sequence.tokens[static_cast<std::size_t>(position)]
                                     : sequence.drafts[static_cast<std::size_t>(draft)]);
    plan_.positions.push_back(static_cast<std::int32_t>(position));
    plan_.slots.push_back(sequence.slot);
  }
  sequence.cached += count;
}

// Ensures pages for `tokens` tokens. Allocates all that are missing, or none and returns false.
bool Scheduler::grow(Sequence& sequence, std::int64_t tokens) {
  const std::int64_t missing = pages_for(tokens) - static_cast<std::int64_t>(sequence.pages.size());
  if (missing > cache_.free()) return false;
  const std::size_t from = sequence.pages.size();
  for (std::int64_t i = 0; i < missing; i++) sequence.pages.push_back(cache_.take());
  enter_pages(sequence, from);
  return true;
}

// Its pages into the page table, from the `from`th on.
void Scheduler::enter_pages(const Sequence& sequence, std::size_t from) {
  const auto row = page_table_.begin() + sequence.slot * table_stride_;
  std::copy(sequence.pages.begin() + static_cast<std::ptrdiff_t>(from), sequence.pages.end(),
            row + static_cast<std::ptrdiff_t>(from));
}

void Scheduler::preempt_newest() {
  send_back_newest();
  preemptions_++;
}

// The newest sequence releases its pages and waits at the front; its tokens so far are computed
// again.
void Scheduler::send_back_newest() {
  PTRT_CHECK(!running_.empty());
  auto newest = std::move(running_.back());
  running_.pop_back();
  release(*newest);
  newest->cached = 0;
  waiting_.push_front(std::move(newest));
}

void Scheduler::release(Sequence& sequence) {
  cache_.release(sequence.pages, sequence.cached);
  free_slots_.push_back(sequence.slot);
  sequence.slot = -1;
}

void Scheduler::note_admissions(double now_s) {
  for (const auto& sequence : running_)
    if (sequence->admitted_s < 0) sequence->admitted_s = now_s;
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
  const bool leaves_unwritten = sequence.slot >= 0 && sequence.cached < sequence.named;
  while (leaves_unwritten && running_.back().get() != &sequence) send_back_newest();
  if (sequence.slot >= 0) release(sequence);
  if (task_ == Task::generate && sequence.scores_prompt()) prompts_to_score_--;
  take_out(sequence);
}

std::unique_ptr<Sequence> Scheduler::take_out(Sequence& sequence) {
  refused_ = nullptr;
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
  return {plan_.positions,
          plan_.slots,
          page_table_,
          table_stride_,
          static_cast<std::int32_t>(limits_.max_batch),
          plan_.only_decodes()};
}

}  // namespace ptrt
