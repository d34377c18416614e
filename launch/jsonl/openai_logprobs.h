// Log-probabilities as the bodies of OpenAI's API have them. Texts of tokens are valid UTF-8: what is none becomes
// U+FFFD. Special tokens have no text.
#pragma once

#include <nlohmann/json.hpp>
#include <span>

#include "launch/jsonl/answer_tokens.h"
#include "model_io/tokenizer/tokenizer.h"

namespace ptrt {

// How tokens are named: `tokenizer` null or `as_ids`: "token_id:N" with the latter, else empty.
struct TokenNames {
  const Tokenizer* tokenizer = nullptr;
  bool as_ids = false;

  std::string name(std::int32_t id) const;
  std::string bytes(std::int32_t id) const;
};

// /v1/completions: {"tokens", "token_logprobs", "top_logprobs": [{TEXT: LP, …}], "text_offset"}. The alternatives are
// followed by the token itself where it is none of them; of equal texts the likeliest counts. Offsets are in characters
// of the text, as Python's len() counts: those before the character that the token's first byte belongs to.
nlohmann::ordered_json completion_logprobs(std::span<const AnswerToken> tokens, const TokenNames& names);
// /v1/chat/completions: {"content": [{"token", "logprob", "bytes", "top_logprobs": [{…}]}], "refusal": null}.
nlohmann::ordered_json chat_logprobs(std::span<const AnswerToken> tokens, const TokenNames& names);
// vLLM's prompt_logprobs: [null, {"ID": {"logprob", "rank", "decoded_token"}, …}, …], the prompt's token first; its rank
// is null where it is none of the alternatives.
nlohmann::ordered_json vllm_prompt_logprobs(std::span<const AnswerToken> tokens, const TokenNames& names);

}  // namespace ptrt
