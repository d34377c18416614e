// Continuous batching: which tokens of which sequences one step runs. Pure bookkeeping, a function
// of the requests and the sampled tokens alone, so every rank of a replica comes to the same plan
// without a message.
//
// A request of several samples is as many sequences. Sequences share whole pages of their prompts
// (PrefixCache): with SchedulerLimits::prefix_cache with any other, else with the samples of the
// same request. A sequence shares pages that are not written yet, and feeds only what follows them.
// That is right because
//  * it was admitted after the one that writes them, prompts are fed in order of admission, each to
//    its end before the next begins, and in each layer the rows of a step come after the keys and
//    values of the rows before them;
//  * the newest is preempted first, so before the one that writes its pages; and what ends before
//    its prompt is fed sends back all that were admitted after it, which have fed nothing.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kernels/step_rows.h"
#include "runtime/requests/request.h"
#include "runtime/schedule/prefix_cache.h"
#include "runtime/speculate/drafter.h"

namespace ptrt {

struct Sequence {
  std::int64_t request = 0;          // its number, as given to add()
  const Request* asked = nullptr;    // outlives the sequence
  std::int64_t sample = 0;           // which of its samples
  std::vector<std::int32_t> tokens;  // prompt, then generated; placeholders for those in flight
  std::int64_t prompt_tokens = 0;
  std::int64_t max_tokens = 0;  // to generate
  std::int64_t score_from = 1;  // the first token to score
  std::int64_t cached = 0;      // tokens whose keys and values are in pages
  std::int64_t admissions = 0;  // how often it was admitted: once more than preempted
  std::int64_t reused = 0;      // of `cached`, when it was first admitted: found in the cache
  std::int64_t named = 0;       // tokens of the pages that others may share
  std::int32_t slot = -1;       // row of the page table while running
  std::vector<std::int32_t> pages;
  std::vector<float> logprobs;
  bool is_greedy = true;            // Completion::is_greedy, so far
  std::int64_t not_finite_at = -1;  // Completion::not_finite_at
  bool not_finite_in_prompt = false;
  std::int64_t none_allowed_at = -1;  // Completion::none_allowed_at
  // Where the prompt's log-probabilities are wanted: its tokens up to here have been planned to be scored. What is
  // computed again after a preemption is not scored again.
  std::int64_t prompt_planned = 1;
  std::vector<float> prompt_logprobs;  // Completion::prompt_logprobs, so far
  std::vector<std::vector<TokenLogprob>> top_logprobs, prompt_top_logprobs;
  std::int64_t place = 0;  // in the order of arrival
  double admitted_s = -1, first_token_s = -1, last_token_s = 0;
  std::vector<float> gaps_s;
  std::unique_ptr<Drafter> drafter;  // null: it has none
  std::vector<std::int32_t> drafts;  // of the step in flight: may follow `tokens`

  std::int64_t generated() const { return static_cast<std::int64_t>(tokens.size()) - prompt_tokens; }
  // The other samples have the same.
  bool scores_prompt() const {
    return asked->prompt_logprobs >= 0 && sample == 0 && prompt_planned < prompt_tokens;
  }
};

struct SchedulerLimits {
  std::int64_t max_batch = 1;    // sequences running at once
  std::int64_t max_rows = 1;     // token rows of one step; >= max_batch
  std::int64_t pages = 0;        // of the KV pool; the spare slot's is the one after these
  std::int64_t max_context = 1;  // bounds the pages of a sequence
  bool prefix_cache = false;     // prompts of different requests share pages
  std::int64_t max_wanted = 1;   // rows of one step whose logits are wanted, with drafts; >= max_batch
};

// What sequences found in the cache when they were first admitted.
struct PrefixCounts {
  std::int64_t reused_tokens = 0;  // of prompts, not computed again
  // Requests of which no whole page can be reused, because log-probabilities of its tokens are wanted.
  std::int64_t wanting_logprobs = 0;
};

constexpr std::int32_t kNoDraft = -1;

// A row whose logits are wanted.
struct LogitRow {
  std::int32_t row = 0;  // of the step
  Sequence* sequence = nullptr;
  std::int64_t position = 0;      // of the row's token in the sequence; the logits are of the token after it
  bool scores = false;            // that token is known, and is scored; else it is sampled
  std::int32_t draft = kNoDraft;  // the row's token, if it is a draft
};

struct StepPlan {
  std::vector<std::int32_t> tokens, positions, slots;  // [rows]
  std::vector<LogitRow> wanted;                        // rows ascending
  std::int64_t scored = 0;                             // of the wanted rows
  // Rows of one token; drafts after them; prompt tokens; generated tokens fed again after a preemption.
  // Together all rows.
  std::int64_t decode_rows = 0, draft_rows = 0, prefill_rows = 0, recomputed_rows = 0;

  // Every row is a token after a prompt, or a draft after that, and its logits are wanted.
  bool only_decodes() const { return decode_rows + draft_rows == static_cast<std::int64_t>(tokens.size()); }
  bool has_prefill() const { return prefill_rows + recomputed_rows > 0; }
};

// Steps may be planned ahead of the tokens: expect_token() puts a placeholder where a sampled token
// will be, and the next step feeds that. Such a step may contain a row of a sequence that turns out
// to have finished; the caller drops its result. A placeholder must be replaced by the token before
// the step after the next is planned.
//
// Pages that a sequence releases may be reused at once, though a step in flight still reads them: a
// device runs steps in the order they were planned, so the new owner's rows are written after that
// step.
class Scheduler {
 public:
  Scheduler(const SchedulerLimits& limits, Task task);
  // With requests[i] for i in `order`, in that order.
  Scheduler(const SchedulerLimits& limits, Task task, std::span<const Request> requests,
            std::span<const std::int64_t> order);

  // One more request, after those before; it must fit limits.pages and outlive its sequence. `number`
  // identifies it.
  void add(std::int64_t number, const Request& request);

  // Sequences that decode get drafts from now on, of drafters that this makes; null: none. A step with drafts is
  // planned, and the next one after it, when all tokens are known.
  void set_drafters(DrafterFactory make) { make_drafter_ = std::move(make); }

  bool done() const { return waiting_.empty() && running_.empty() && ending_.empty(); }
  // How many of the requests, in their order, have arrived so far; by default all. The ranks of a
  // replica must agree on it.
  void set_arrived(std::int64_t count) { arrived_ = count; }
  // There is no step to plan, though not all is done: the remaining requests have not arrived, or
  // their last token is in flight.
  bool idle() const {
    return running_.empty() && (waiting_.empty() || !has_arrived(*waiting_.front())) && !done();
  }
  bool has_step() const { return !done() && !idle(); }
  // The next steps may score tokens of prompts. That waits for the backend, so that the tokens of steps in flight
  // are to be taken first.
  bool may_score_prompts() const { return prompts_to_score_ > 0; }
  // The next step; never empty while has_step(). Valid until the next call. Counts its rows
  // as cached.
  const StepPlan& next_step();
  StepRows step_rows() const;
  // Sequences that were first admitted with the last step get this time.
  void note_admissions(double now_s);
  // Appends `placeholder` for a token that will be known later. If it is the last of max_tokens,
  // the sequence releases its pages: that token is never fed.
  void expect_token(Sequence& sequence, std::int32_t placeholder);
  // Once all tokens of a step are taken: forgets the rows of the sequence whose drafts were wrong. Their keys and
  // values are overwritten by the rows that come in their place.
  void settle_drafts(Sequence& sequence);
  // Removes a finished sequence and frees its pages.
  void finish(Sequence& sequence);
  std::int64_t preemptions() const { return preemptions_; }
  const PrefixCounts& prefix_counts() const { return prefix_counts_; }
  std::int64_t running() const { return static_cast<std::int64_t>(running_.size()); }

 private:
  void admit();
  bool admit_next();
  // Root of the chains that a sequence shares; none: it shares nothing.
  std::optional<PrefixCache::Root> root_of(const Sequence& sequence) const;
  // The tokens whose whole pages others may share.
  std::span<const std::int32_t> shareable(const Sequence& sequence) const;
  std::int64_t most_reused(const Sequence& sequence) const;
  void count_reuse(Sequence& sequence);
  void plan_decode();
  std::int64_t draft_room(std::int64_t decoding) const;
  void propose_drafts(Sequence& sequence, std::int64_t most);
  void plan_prefill();
  void add_rows(Sequence& sequence, std::int64_t count);
  bool has_arrived(const Sequence& sequence) const { return sequence.place < arrived_; }
  bool in_prefill(const Sequence& sequence) const;
  std::int64_t rows_to_cache(const Sequence& sequence) const;
  bool is_scored(const Sequence& sequence, std::int64_t position) const;
  bool is_sampled(const Sequence& sequence, std::int64_t position) const;
  void want_row(Sequence& sequence, std::int64_t position);
  void preempt_newest();
  void send_back_newest();
  void release(Sequence& sequence);
  std::unique_ptr<Sequence> take_out(Sequence& sequence);
  bool grow(Sequence& sequence, std::int64_t tokens);
  void enter_pages(const Sequence& sequence, std::size_t from);

  SchedulerLimits limits_;
  Task task_;
  std::int64_t table_stride_;
  PrefixCache cache_;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in order of admission
  std::vector<std::unique_ptr<Sequence>> ending_;   // without pages: the last token is in flight
  // The sequence for which there was no room when it was looked at last, and the cache's gains() then.
  const Sequence* refused_ = nullptr;
  std::uint64_t refused_at_ = 0;
  std::vector<std::int32_t> free_slots_;
  std::vector<std::int32_t> page_table_;  // [max_batch + 1, table_stride_]; the last slot is spare
  std::int64_t arrived_ = std::numeric_limits<std::int64_t>::max();
  std::int64_t added_ = 0;
  std::int64_t prompts_to_score_ = 0;  // sequences with scores_prompt()
  std::int64_t preemptions_ = 0;
  PrefixCounts prefix_counts_;
  DrafterFactory make_drafter_;
  StepPlan plan_;
};

}  // namespace ptrt
