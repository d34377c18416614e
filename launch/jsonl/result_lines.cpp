#include "launch/jsonl/result_lines.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "launch/jsonl/answer_tokens.h"
#include "launch/jsonl/openai_body.h"
#include "model_io/text/unicode.h"

namespace ptrt {
namespace {

using nlohmann::ordered_json;

const char* const kNonFiniteLogits = "non_finite_logits";
const char* const kNoAllowedToken = "no_allowed_token";

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
    return {kNoAllowedToken, fmt::format("the request's masks (allowed tokens, bad words, min_tokens, "
                                         "structured output) leave no token for {} {}",
                                         which, completion.none_allowed_at)};
  return {kNonFiniteLogits,
          fmt::format("the logits of {} {} are not finite: the model has weights that are not, or too large "
                      "('ptrt inspect --verify' finds the former)",
                      which, completion.not_finite_at)};
}

std::string error_line(const RequestLine& line, std::int64_t number, const RequestError& error) {
  const ordered_json brief{{"code", error.code}, {"message", error.message}};
  if (!line.openai) return dump({{"id", line.id}, {"error", brief}});
  const bool of_server = error.code == kNonFiniteLogits || is_error_of_host(error.code);
  const ordered_json body{{"error",
                           {{"message", error.message},
                            {"type", of_server ? "server_error" : "invalid_request_error"},
                            {"param", nullptr},
                            {"code", error.code}}}};
  ordered_json result = openai_envelope(line, number, of_server ? 500 : 400, body);
  result["error"] = brief;
  return dump(result);
}

// Of an error line, else empty. No string holds these characters: its quotes are escaped.
std::string_view code_of(std::string_view result_json) {
  constexpr std::string_view kKey = "\"code\":\"";
  const std::size_t at = result_json.find(kKey);
  if (at == std::string_view::npos) return {};
  result_json.remove_prefix(at + kKey.size());
  return result_json.substr(0, result_json.find('"'));
}

// [[ID, LP], …]
ordered_json pairs_of(std::span<const TokenLogprob> alternatives) {
  ordered_json pairs = ordered_json::array();
  for (const auto& [token, logprob] : alternatives) pairs.push_back(ordered_json::array({token, logprob}));
  return pairs;
}

// Written out by hand: with a small model, most of a request's time would go into a tree of JSON values.
class PlainAnswer {
 public:
  PlainAnswer(const RequestLine& line, const Request& request, const Completion& completion,
              const Tokenizer* tokenizer)
      : line_(line), request_(request), completion_(completion), tokenizer_(tokenizer) {}

  std::string json() {
    out_.reserve(kUsual);
    out_ = "{\"id\":";
    append_string(out_, line_.id);
    if (request_.samples == 1) {
      out_ += ',';
      add_output(completion_);
      add_usage();
      add_logprobs(completion_);
    } else {
      add_choices();
      add_usage();
    }
    if (line_.prompt_logprobs >= 0)
      add_lists("prompt_", prompt_answer(line_, request_, completion_), line_.prompt_logprobs > 0);
    out_ += '}';
    return std::move(out_);
  }

 private:
  void add_choices() {
    out_ += ",\"choices\":[";
    for (const Output* output : samples_of(completion_)) {
      out_ += output == &completion_ ? "{" : ",{";
      add_output(*output);
      add_logprobs(*output);
      out_ += '}';
    }
    out_ += ']';
  }

  void add_output(const Output& output) {
    if (tokenizer_ != nullptr) {
      out_ += "\"text\":";
      append_string(
          out_, line_.echo ? answer_text(line_, request_, output, *tokenizer_) : sanitize_utf8(output.text));
      out_ += ',';
    }
    out_ += "\"tokens\":[";
    if (line_.echo) add_ids(request_.tokens);
    add_ids(output.tokens);
    out_ += "],\"finish_reason\":\"";
    out_ += name_of(output.finish_reason);
    out_ += '"';
  }

  void add_ids(const std::vector<std::int32_t>& ids) {
    for (const std::int32_t id : ids) {
      if (out_.back() != '[') out_ += ',';
      add_number(id);
    }
  }

  void add_usage() {
    out_ += ",\"usage\":{\"prompt_tokens\":";
    add_number(std::ssize(request_.tokens));
    out_ += ",\"completion_tokens\":";
    add_number(generated_tokens(completion_));
    out_ += '}';
  }

  void add_number(std::int64_t number) {
    const fmt::format_int digits(number);
    out_.append(digits.data(), digits.size());
  }

  void add_logprobs(const Output& output) {
    if (!request_.logprobs) return;
    if (line_.echo || request_.top_logprobs > 0)
      add_lists("", answer_tokens(line_, request_, completion_, output), request_.top_logprobs > 0);
    else
      out_ += ",\"logprobs\":" + dump(output.logprobs);
  }

  // "logprobs": [null, LP, …] and "top_logprobs": [null, [[ID, LP], …], …].
  void add_lists(const char* prefix, const std::vector<AnswerToken>& tokens, bool with_top) {
    ordered_json logprobs = ordered_json::array(), top = ordered_json::array();
    for (const AnswerToken& token : tokens) {
      logprobs.push_back(token.logprob ? ordered_json(*token.logprob) : ordered_json(nullptr));
      top.push_back(token.logprob ? pairs_of(token.top) : ordered_json(nullptr));
    }
    out_ += fmt::format(",\"{}logprobs\":{}", prefix, dump(logprobs));
    if (with_top) out_ += fmt::format(",\"{}top_logprobs\":{}", prefix, dump(top));
  }

  static constexpr std::size_t kUsual = 128;  // bytes of a short answer

  const RequestLine& line_;
  const Request& request_;
  const Completion& completion_;
  const Tokenizer* tokenizer_;
  std::string out_;
};

}  // namespace

std::string generate_result(const RequestLine& line, const Request& request, const Completion& completion,
                            const Tokenizer* tokenizer) {
  if (completion.failed())
    return error_line(
        line, request.line,
        error_of(completion, completion.not_finite_in_prompt ? "prompt token" : "output token"));
  if (!line.openai) return PlainAnswer(line, request, completion, tokenizer).json();
  return dump(openai_envelope(line, request.line, 200, openai_body(line, request, completion, tokenizer)));
}

std::string score_result(const RequestLine& line, const Request& request, const Completion& completion) {
  if (completion.failed()) return error_line(line, request.line, error_of(completion, "token"));
  ordered_json logprobs = ordered_json::array(), top = ordered_json::array();
  if (!line.continuation) {
    logprobs.push_back(nullptr);
    top.push_back(nullptr);
  }
  double sum = 0;
  for (const float lp : completion.logprobs) {
    logprobs.push_back(lp);
    sum += lp;
  }
  for (const auto& alternatives : completion.top_logprobs) top.push_back(pairs_of(alternatives));
  const auto first = request.tokens.begin() + (line.continuation ? request.score_from : 0);
  ordered_json result{{"id", line.id},
                      {"tokens", std::vector<std::int32_t>(first, request.tokens.end())},
                      {"logprobs", std::move(logprobs)}};
  if (request.top_logprobs > 0) result["top_logprobs"] = std::move(top);
  result["sum_logprob"] = sum;
  if (line.continuation)
    result["is_greedy"] = completion.is_greedy;
  else
    result["perplexity"] =
        completion.logprobs.empty()
            ? ordered_json(nullptr)
            : ordered_json(std::exp(-sum / static_cast<double>(completion.logprobs.size())));
  return dump(result);
}

std::string error_result(const RequestLine& line, std::int64_t number) {
  return error_line(line, number, line.error);
}

bool is_kv_cache_exceeded(std::string_view result_json) {
  return code_of(result_json) == kKvCacheExceeded;
}

bool may_have_result(std::string_view result_json) {
  const std::string_view code = code_of(result_json);
  return code == kKvCacheExceeded || is_error_of_host(code);
}

}  // namespace ptrt
