#include "launch/jsonl/openai_logprobs.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "model_io/text/unicode.h"

namespace ptrt {
namespace {

using nlohmann::ordered_json;

// The characters of a text, counted up to places that ascend.
class CharacterCount {
 public:
  explicit CharacterCount(std::string_view text) : text_(text) {}
  // How many characters end at or before byte `place`.
  std::size_t before(std::size_t place) {
    while (at_ < text_.size()) {
      std::size_t end = at_;
      next_character(text_, end);
      if (end > place) break;
      at_ = end;
      count_++;
    }
    return count_;
  }

 private:
  std::string_view text_;
  std::size_t at_ = 0, count_ = 0;  // whole characters so far: where they end, how many
};

ordered_json text_offsets(std::span<const AnswerToken> tokens, const TokenNames& names) {
  std::string text;
  std::vector<std::size_t> places;
  for (const AnswerToken& token : tokens) {
    places.push_back(text.size());
    text += names.bytes(token.id);
  }
  ordered_json offsets = ordered_json::array();
  CharacterCount characters(text);
  for (const std::size_t place : places) offsets.push_back(characters.before(place));
  return offsets;
}

// Of a token that has a log-probability.
ordered_json alternatives_by_text(const AnswerToken& token, const TokenNames& names) {
  ordered_json found = ordered_json::object();
  for (const TokenLogprob& other : token.top) found.emplace(names.name(other.token), other.logprob);
  found.emplace(names.name(token.id), *token.logprob);
  return found;
}

ordered_json chat_token(std::int32_t id, float logprob, const TokenNames& names) {
  ordered_json bytes = ordered_json::array();
  for (const char byte : names.bytes(id)) bytes.push_back(static_cast<unsigned char>(byte));
  return {{"token", names.name(id)}, {"logprob", logprob}, {"bytes", std::move(bytes)}};
}

}  // namespace

std::string TokenNames::bytes(std::int32_t id) const {
  return tokenizer != nullptr ? tokenizer->token_bytes(id) : std::string();
}

std::string TokenNames::name(std::int32_t id) const {
  return as_ids ? fmt::format("token_id:{}", id) : sanitize_utf8(bytes(id));
}

ordered_json completion_logprobs(std::span<const AnswerToken> tokens, const TokenNames& names) {
  ordered_json texts = ordered_json::array(), logprobs = ordered_json::array(), top = ordered_json::array();
  for (const AnswerToken& token : tokens) {
    texts.push_back(names.name(token.id));
    logprobs.push_back(token.logprob ? ordered_json(*token.logprob) : ordered_json(nullptr));
    top.push_back(token.logprob ? alternatives_by_text(token, names) : ordered_json(nullptr));
  }
  return {{"tokens", std::move(texts)},
          {"token_logprobs", std::move(logprobs)},
          {"top_logprobs", std::move(top)},
          {"text_offset", text_offsets(tokens, names)}};
}

ordered_json chat_logprobs(std::span<const AnswerToken> tokens, const TokenNames& names) {
  ordered_json content = ordered_json::array();
  for (const AnswerToken& token : tokens) {
    if (!token.logprob) continue;
    ordered_json top = ordered_json::array();
    for (const TokenLogprob& other : token.top) top.push_back(chat_token(other.token, other.logprob, names));
    ordered_json entry = chat_token(token.id, *token.logprob, names);
    entry["top_logprobs"] = std::move(top);
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

ordered_json vllm_prompt_logprobs(std::span<const AnswerToken> tokens, const TokenNames& names) {
  ordered_json list = ordered_json::array();
  for (const AnswerToken& token : tokens) {
    if (!token.logprob) {
      list.push_back(nullptr);
      continue;
    }
    const auto entry = [&](std::int32_t id, float logprob, ordered_json rank) {
      return ordered_json{
          {"logprob", logprob}, {"rank", std::move(rank)}, {"decoded_token", sanitize_utf8(names.bytes(id))}};
    };
    const auto own = std::ranges::find(token.top, token.id, &TokenLogprob::token);
    ordered_json by_id = ordered_json::object();
    by_id[std::to_string(token.id)] =
        entry(token.id, *token.logprob,
              own == token.top.end() ? ordered_json(nullptr) : ordered_json(own - token.top.begin() + 1));
    for (std::size_t i = 0; i < token.top.size(); i++)
      by_id.emplace(std::to_string(token.top[i].token),
                    entry(token.top[i].token, token.top[i].logprob, i + 1));
    list.push_back(std::move(by_id));
  }
  return list;
}

}  // namespace ptrt
