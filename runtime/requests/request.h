// What the engine runs, and what it returns.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/jobs.h"
#include "runtime/requests/byte_automaton.h"

namespace ptrt {

enum class Task : std::uint8_t { generate, score };

// Bounds that every request keeps (docs/REQUESTS.md), beside kMaxTopLogprobs.
inline constexpr std::int64_t kMaxSamples = 128;

struct TokenBias {
  std::int32_t token = 0;
  float bias = 0;  // added to the token's logit

  bool operator==(const TokenBias&) const = default;
};

// What changes the logits of a row before a token is chosen from it: masks, then biases, then penalties. The
// meaning is that of vLLM's SamplingParams.
struct LogitRules {
  float repetition_penalty = 1;       // > 0; of tokens in the prompt or the output
  float presence_penalty = 0;         // of tokens in the output
  float frequency_penalty = 0;        // the same, for each time they are there
  std::vector<TokenBias> bias;        // tokens ascending, each once
  std::vector<std::int32_t> allowed;  // ascending; empty: all
  std::vector<std::vector<std::int32_t>>
      bad_words;                 // each not empty; its last token never follows the others
  std::int64_t min_tokens = 0;   // before so many, no eos and no stop token
  OutputConstraint output = {};  // the form of the text; none: any

  bool operator==(const LogitRules&) const = default;
  bool has_penalties() const {
    return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0;
  }
  bool any() const {
    return has_penalties() || !bias.empty() || !allowed.empty() || !bad_words.empty() || min_tokens > 0 ||
           output;
  }
};

struct Request {
  std::int64_t line = 0;             // 0-based, in the request file
  std::vector<std::int32_t> tokens;  // prompt, or the text to score; never empty
  std::int64_t max_tokens = 0;  // to generate, >= 1; 0 when scoring, or where only the prompt is asked about
  std::int64_t score_from = 1;  // index of the first token to score, >= 1
  float temperature = 0;        // 0: greedy
  std::int32_t top_k = 0;       // 0: all
  float top_p = 1;              // 1: all
  float min_p = 0;  // tokens with less than this part of the likeliest one's probability are dropped
  std::uint64_t seed = 0;
  std::int64_t samples = 1;  // n: outputs drawn; more than one only with a temperature
  LogitRules rules = {};
  std::vector<std::string> stop = {};  // the text ends before the first match of any
  bool logprobs = false;
  bool ignore_eos = false;
  bool include_stop = false;                   // the text ends behind the match
  std::vector<std::int32_t> stop_tokens = {};  // ascending; each ends the output as eos does
  std::int64_t top_logprobs = 0;               // alternatives a token; only with logprobs
  std::int64_t prompt_logprobs =
      -1;                // -1: not asked for; else of the prompt's tokens, with so many alternatives
  double arrival_s = 0;  // since the start of the run; the request is not admitted before

  bool operator==(const Request&) const = default;

  // Tokens whose keys and values must be cached together, for each sample: the last token generated (or scored)
  // is never fed.
  std::int64_t cached_tokens() const { return static_cast<std::int64_t>(tokens.size()) + max_tokens - 1; }
  // How much there is to do, in tokens at most.
  std::int64_t work() const { return static_cast<std::int64_t>(tokens.size()) + samples * max_tokens; }
};

enum class FinishReason : std::uint8_t { stop, length };

// One sample of a request.
struct Output {
  std::vector<std::int32_t> tokens;  // generated, eos and stop tokens included
  std::vector<float>
      logprobs;  // generate: one a generated token, if asked for; score: of tokens score_from …
  // The likeliest alternatives of each of these tokens, descending, ties to the lower id; empty unless asked for.
  std::vector<std::vector<TokenLogprob>> top_logprobs;
  std::string text;  // bytes generated, cut at the stop string; no special tokens
  FinishReason finish_reason = FinishReason::length;
};

// The output of sample 0, and what is of the whole request.
struct Completion : Output {
  std::int64_t request = 0;  // index into the requests given to the engine, or the line of one it drew
  std::int64_t prompt_tokens = 0;
  // The first token whose logits were not all finite, so that there is no result (tokens, logprobs
  // and text are empty): generate: its index in the output; score: in the request's tokens. -1: none.
  std::int64_t not_finite_at = -1;
  bool not_finite_in_prompt = false;  // generate: it is an index in the prompt
  // generate: the index in the output of the first token for which the rules allow none; no result either. -1: none.
  std::int64_t none_allowed_at = -1;
  bool is_greedy = true;               // score: each of these tokens is the one that temperature 0 chooses
  std::vector<Output> more;            // samples 1 …
  std::vector<float> prompt_logprobs;  // of the prompt's tokens from the second on, if asked for
  std::vector<std::vector<TokenLogprob>> prompt_top_logprobs;  // of the same
  std::int64_t reused_tokens = 0;  // of the prompt, whose keys and values were there already
  // Since the start of the run: the first step that computes something of it, the first token (or all scores), the end.
  double admitted_s = 0, first_token_s = 0, finish_s = 0;
  std::vector<float> gaps_s;  // between a token of sample 0 and the one before it

  bool failed() const { return not_finite_at >= 0 || none_allowed_at >= 0; }
};

}  // namespace ptrt
