#include "launch/jsonl/result_lines.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "model_io/text/unicode.h"

namespace ptrt {
namespace {

using nlohmann::ordered_json;

const char* const kNonFiniteLogits = "non_finite_logits";
const char* const kNoAllowedToken = "no_allowed_token";

const char* name_of(FinishReason reason) {
  return reason == FinishReason::stop ? "stop" : "length";
}

std::string dump(const ordered_json& object) {
  return object.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

// As JSON. Most texts are plain ASCII, which needs no escapes.
void append_string(std::string& out, const std::string& text) {
  const bool plain =
      std::ranges::all_of(text, [](char c) { return c >= ' ' && c <= '~' && c != '"' && c != '\\'; });
  if (!plain) return void(out += dump(text));
  out += '"';
  out += text;
  out += '"';
}

// The response line of an OpenAI batch; ids come from the line number (docs/SPEC.md, Requests).
ordered_json openai_envelope(const RequestLine& line, std::int64_t number, int status, ordered_json body) {
  ordered_json response{
      {"status_code", status}, {"request_id", fmt::format("req_{}", number)}, {"body", std::move(body)}};
  return {{"id", fmt::format("batch_req_{}", number)},
          {"custom_id", line.id},
          {"response", std::move(response)},
          {"error", nullptr}};
}

// What stands in place of the result of a failed completion.
RequestError error_of(const Completion& completion, const char* which) {
  if (completion.none_allowed_at >= 0)
    return {
        kNoAllowedToken,
        fmt::format("the request's masks (allowed tokens, bad words, min_tokens) leave no token for {} {}",
                    which, completion.none_allowed_at)};
  return {kNonFiniteLogits,
          fmt::format("the logits of {} {} are not finite: the model has weights that are not, or too large "
                      "('ptrt inspect --verify' finds the former)",
                      which, completion.not_finite_at)};
}

std::string error_line(const RequestLine& line, std::int64_t number, const RequestError& error) {
  const ordered_json brief{{"code", error.code}, {"message", error.message}};
  if (!line.openai) return dump({{"id", line.id}, {"error", brief}});
  const bool of_server = error.code == kNonFiniteLogits;
  const ordered_json body{{"error",
                           {{"message", error.message},
                            {"type", of_server ? "server_error" : "invalid_request_error"},
                            {"param", nullptr},
                            {"code", error.code}}}};
  ordered_json result = openai_envelope(line, number, of_server ? 500 : 400, body);
  result["error"] = brief;
  return dump(result);
}

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

// A token's offset is in characters of the text, as sanitize_utf8() gives it: those before the one that
// the token's first byte belongs to.
ordered_json openai_logprobs(const Completion& completion, const Tokenizer* tokenizer) {
  ordered_json tokens = ordered_json::array(), offsets = ordered_json::array();
  std::string text;
  std::vector<std::size_t> places;
  for (const std::int32_t id : completion.tokens) {
    const std::string piece = tokenizer != nullptr ? tokenizer->token_bytes(id) : std::string();
    tokens.push_back(sanitize_utf8(piece));
    places.push_back(text.size());
    text += piece;
  }
  CharacterCount characters(text);
  for (const std::size_t place : places) offsets.push_back(characters.before(place));
  return {{"tokens", std::move(tokens)},
          {"token_logprobs", completion.logprobs},
          {"top_logprobs", nullptr},
          {"text_offset", std::move(offsets)}};
}

// Written out by hand: with a small model, most of a request's time would go into a tree of JSON values.
std::string plain_result(const RequestLine& line, const Request& request, const Completion& completion,
                         const Tokenizer* tokenizer) {
  std::string out = "{\"id\":";
  append_string(out, line.id);
  if (tokenizer != nullptr) {
    out += ",\"text\":";
    append_string(out, sanitize_utf8(completion.text));
  }
  fmt::format_to(std::back_inserter(out),
                 ",\"tokens\":[{}],\"finish_reason\":\"{}\",\"usage\":{{\"prompt_tokens\":{},"
                 "\"completion_tokens\":{}}}",
                 fmt::join(completion.tokens, ","), name_of(completion.finish_reason), request.tokens.size(),
                 completion.tokens.size());
  if (request.logprobs) out += ",\"logprobs\":" + dump(completion.logprobs);
  out += '}';
  return out;
}

}  // namespace

std::string generate_result(const RequestLine& line, const Request& request, const Completion& completion,
                            const Tokenizer* tokenizer) {
  if (completion.failed())
    return error_line(
        line, request.line,
        error_of(completion, completion.not_finite_in_prompt ? "prompt token" : "output token"));
  const std::size_t prompt = request.tokens.size(), generated = completion.tokens.size();
  if (!line.openai) return plain_result(line, request, completion, tokenizer);
  ordered_json choice{{"index", 0}};
  choice["text"] = tokenizer != nullptr ? sanitize_utf8(completion.text) : std::string();
  if (tokenizer == nullptr) choice["token_ids"] = completion.tokens;
  choice["logprobs"] = request.logprobs ? openai_logprobs(completion, tokenizer) : ordered_json(nullptr);
  choice["finish_reason"] = name_of(completion.finish_reason);
  ordered_json body{
      {"id", fmt::format("cmpl-{}", request.line)}, {"object", "text_completion"}, {"created", 0}};
  body["model"] = line.model;
  body["choices"] = ordered_json::array({std::move(choice)});
  body["usage"] = {
      {"prompt_tokens", prompt}, {"completion_tokens", generated}, {"total_tokens", prompt + generated}};
  return dump(openai_envelope(line, request.line, 200, std::move(body)));
}

std::string score_result(const RequestLine& line, const Request& request, const Completion& completion) {
  if (completion.failed()) return error_line(line, request.line, error_of(completion, "token"));
  ordered_json logprobs = ordered_json::array();
  if (!line.continuation) logprobs.push_back(nullptr);
  double sum = 0;
  for (const float lp : completion.logprobs) {
    logprobs.push_back(lp);
    sum += lp;
  }
  if (line.continuation) {
    const std::vector<std::int32_t> tokens(request.tokens.begin() + request.score_from, request.tokens.end());
    return dump({{"id", line.id},
                 {"tokens", tokens},
                 {"logprobs", std::move(logprobs)},
                 {"sum_logprob", sum},
                 {"is_greedy", completion.is_greedy}});
  }
  ordered_json result{
      {"id", line.id}, {"tokens", request.tokens}, {"logprobs", std::move(logprobs)}, {"sum_logprob", sum}};
  result["perplexity"] = completion.logprobs.empty()
                             ? ordered_json(nullptr)
                             : ordered_json(std::exp(-sum / static_cast<double>(completion.logprobs.size())));
  return dump(result);
}

std::string error_result(const RequestLine& line, std::int64_t number) {
  return error_line(line, number, line.error);
}

// No string holds these characters: its quotes are escaped.
bool is_kv_cache_exceeded(std::string_view result_json) {
  static const std::string code = fmt::format("\"code\":\"{}\"", kKvCacheExceeded);
  return result_json.find(code) != std::string_view::npos;
}

}  // namespace ptrt
