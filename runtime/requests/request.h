// What the engine runs, and what it returns.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ptrt {

enum class Task : std::uint8_t { generate, score };

struct Request {
  std::int64_t line = 0;             // 0-based, in the request file
  std::vector<std::int32_t> tokens;  // prompt, or the text to score; never empty
  std::int64_t max_tokens = 0;       // to generate, >= 1; 0 when scoring
  std::int64_t score_from = 1;       // index of the first token to score, >= 1
  float temperature = 0;             // 0: greedy
  std::int32_t top_k = 0;            // 0: all
  float top_p = 1;                   // 1: all
  std::uint64_t seed = 0;
  std::vector<std::string> stop;  // the text ends before the first match of any
  bool logprobs = false;
  bool ignore_eos = false;
  double arrival_s = 0;  // since the start of the run; the request is not admitted before

  // Tokens whose keys and values must be cached together: the last token generated (or scored) is
  // never fed.
  std::int64_t cached_tokens() const { return static_cast<std::int64_t>(tokens.size()) + max_tokens - 1; }
};

enum class FinishReason : std::uint8_t { stop, length };

struct Completion {
  std::int64_t request = 0;  // index into the requests given to the engine, or the line of one it drew
  std::int64_t prompt_tokens = 0;
  // The first token whose logits were not all finite, so that there is no result (tokens, logprobs
  // and text are empty): generate: its index in the output; score: in the request's tokens. -1: none.
  std::int64_t not_finite_at = -1;
  std::vector<std::int32_t> tokens;  // generated, eos and stop tokens included
  std::vector<float>
      logprobs;           // generate: one a generated token, if asked for; score: of tokens score_from …
  bool is_greedy = true;  // score: each of these tokens is the one that temperature 0 chooses
  std::string text;       // bytes generated, cut before the stop string; no special tokens
  FinishReason finish_reason = FinishReason::length;
  double first_token_s = 0;  // since the start of the run: the first token, and the end
  double finish_s = 0;
  std::vector<float> gaps_s;  // between a token and the one before it

  bool failed() const { return not_finite_at >= 0; }
};

}  // namespace ptrt
