#include "launch/requests/prompt_reader.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "launch/requests/bad_request.h"
#include "launch/requests/chat_fields.h"

namespace ptrt {

using nlohmann::json;

void PromptReader::read(const Fields& fields, std::string_view text, Task task, std::int64_t max_tokens,
                        RequestLine& line, Request& request) const {
  line.continuation = !line.chat && task == Task::score &&
                      (fields.find("context") != nullptr || fields.find("continuation") != nullptr);
  if (line.chat)
    request.tokens = chat_tokens(fields, text, line);
  else if (line.continuation)
    read_continuation(fields, request);
  else
    request.tokens = prompt_tokens(fields, line);
  truncate(fields, max_tokens, request);
}

// Only the continuation is scored: what the text of both, encoded together, has more tokens than the context.
void PromptReader::read_continuation(const Fields& fields, Request& request) const {
  const json *context = fields.find("context"), *continuation = fields.find("continuation");
  const bool add_bos = fields.flag("add_special_tokens", true);
  if (fields.find("prompt") != nullptr || fields.find("tokens") != nullptr)
    reject("invalid_request", "give either 'prompt' or 'tokens', or 'context' and 'continuation'");
  if (context == nullptr || continuation == nullptr)
    reject("invalid_request", "'context' and 'continuation' go together: '{}' is not given",
           context == nullptr ? "context" : "continuation");
  if (context->is_string() && continuation->is_string()) {
    const auto& text = context->get_ref<const std::string&>();
    request.score_from = std::ssize(prompt_text("context", text, add_bos));
    request.tokens = prompt_text("context", text + continuation->get_ref<const std::string&>(), add_bos);
  } else if (context->is_array() && continuation->is_array()) {
    request.tokens = token_ids("context", *context);
    request.score_from = std::ssize(request.tokens);
    const auto rest = token_ids("continuation", *continuation);
    request.tokens.insert(request.tokens.end(), rest.begin(), rest.end());
  } else {
    reject("invalid_request",
           "'context' and 'continuation' must both be text or both be arrays of token ids, found {} and {}",
           context->type_name(), continuation->type_name());
  }
  if (request.score_from >= std::ssize(request.tokens))
    reject("invalid_request", "'continuation' adds no token to the {} of 'context'", request.score_from);
}

// The template has the bos where the model wants one.
std::vector<std::int32_t> PromptReader::chat_tokens(const Fields& fields, std::string_view text,
                                                    const RequestLine& line) const {
  check_chat(fields);
  need_tokenizer("give 'tokens' instead of 'messages'");
  if (helpers_.chat == nullptr) reject("unsupported", "'messages' are not supported by this command");
  auto ids = tokenizer_.tokenizer->encode_rendered(helpers_.chat->render(text, line.openai));
  if (ids.empty()) reject("invalid_request", "the chat template gives an empty prompt");
  return ids;
}

std::vector<std::int32_t> PromptReader::prompt_tokens(const Fields& fields, const RequestLine& line) const {
  const json* prompt = fields.find("prompt");
  const json* tokens = fields.find("tokens");
  const bool add_bos = fields.flag("add_special_tokens", true);
  if (prompt != nullptr && tokens != nullptr)
    reject("invalid_request", "give either 'prompt' or 'tokens', not both");
  if (prompt == nullptr && tokens == nullptr)
    reject("invalid_request", "neither 'prompt' nor 'tokens' is given");
  if (tokens != nullptr) return token_ids("tokens", *tokens);
  if (prompt->is_string()) return prompt_text("prompt", prompt->get_ref<const std::string&>(), add_bos);
  if (line.openai && prompt->is_array() && !prompt->empty()) return prompt_array(*prompt, add_bos);
  reject_type("prompt", "a string", *prompt);
}

// An OpenAI prompt may be an array: of token ids, or of prompts, each a text or an array of token ids.
std::vector<std::int32_t> PromptReader::prompt_array(const json& prompt, bool add_bos) const {
  const json& first = prompt.front();
  if (first.is_number()) return token_ids("prompt", prompt);
  if (!first.is_string() && !first.is_array())
    reject_type("prompt", "an array of token ids or of one prompt", first);
  if (prompt.size() > 1)
    reject("unsupported", "'prompt' has {} prompts: give each a line of its own", prompt.size());
  if (first.is_array()) return token_ids("prompt", first);
  return prompt_text("prompt", first.get_ref<const std::string&>(), add_bos);
}

std::vector<std::int32_t> PromptReader::token_ids(std::string_view key, const json& array) const {
  if (!array.is_array()) reject_type(key, "an array of token ids", array);
  if (array.empty()) reject("invalid_request", "'{}' is empty", key);
  std::vector<std::int32_t> ids;
  ids.reserve(array.size());
  for (const json& item : array) {
    if (!item.is_number_integer()) reject_type(key, "an array of integers", item);
    const bool fits = item.is_number_unsigned() &&
                      item.get<std::uint64_t>() < static_cast<std::uint64_t>(config_.vocab_size);
    if (!fits)
      reject("token_out_of_range", "token id {} in '{}' at {} is not in 0 … {}", item.dump(), key, ids.size(),
             config_.vocab_size - 1);
    ids.push_back(item.get<std::int32_t>());
  }
  return ids;
}

void PromptReader::need_tokenizer(std::string_view why) const {
  if (tokenizer_.tokenizer == nullptr) reject("no_tokenizer", "{}: {}", tokenizer_.why_none, why);
}

std::vector<std::int32_t> PromptReader::encode(std::string_view key, const std::string& text) const {
  need_tokenizer(key == "prompt" ? "give 'tokens' instead of 'prompt'" : "give token ids instead of text");
  return tokenizer_.tokenizer->encode(text);
}

std::vector<std::int32_t> PromptReader::prompt_text(std::string_view key, const std::string& text,
                                                    bool add_bos) const {
  std::vector<std::int32_t> ids = encode(key, text);
  const bool has_bos = add_bos && config_.bos_token_id.has_value();
  if (has_bos) ids.insert(ids.begin(), static_cast<std::int32_t>(*config_.bos_token_id));
  if (ids.empty())
    reject("invalid_request", "'{}' is empty and {}", key,
           config_.bos_token_id ? "no bos is asked for" : "the model has no bos token");
  return ids;
}

// truncate_prompt_tokens: the last N tokens stay, or the first ones; -1: as many as fit. Of a context and a
// continuation the latter stays whole.
void PromptReader::truncate(const Fields& fields, std::int64_t max_tokens, Request& request) const {
  const auto limit = fields.integer("truncate_prompt_tokens", -1, INT64_MAX);
  const auto side = fields.text("truncation_side");
  if (side && *side != "left" && *side != "right")
    reject("invalid_request", "'truncation_side' must be \"left\" or \"right\", found \"{}\"", *side);
  if (!limit) return;
  if (*limit == 0) reject("invalid_request", "'truncate_prompt_tokens' must be -1 or at least 1, found 0");
  const std::int64_t room = std::max<std::int64_t>(config_.max_context - max_tokens, 1);
  const std::int64_t left = *limit < 0 ? room : *limit;
  const std::int64_t cut = std::ssize(request.tokens) - left;
  if (cut <= 0) return;
  if (side == "right") {
    if (request.score_from > 1)
      reject("unsupported", "'truncation_side' \"right\" is not supported with 'continuation'");
    request.tokens.resize(static_cast<std::size_t>(left));
    return;
  }
  if (request.score_from > 1 && request.score_from - cut < 1)
    reject("invalid_request", "'truncate_prompt_tokens' of {} leaves no token before the continuation", left);
  request.score_from = std::max<std::int64_t>(request.score_from - cut, 1);
  request.tokens.erase(request.tokens.begin(), request.tokens.begin() + static_cast<std::ptrdiff_t>(cut));
}

}  // namespace ptrt
