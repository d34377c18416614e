#include "launch/jsonl/request_file.h"

#include <xxhash.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/base/progress.h"
#include "launch/jsonl/id_set.h"
#include "launch/jsonl/line_id.h"
#include "launch/streams/request_input.h"
#include "model_io/config/strict_json.h"

namespace ptrt {
namespace {

using nlohmann::json;

// Thrown to end the parsing of one line, which becomes an error line.
struct BadRequest {
  RequestError error;
};

template <typename... Args>
[[noreturn]] void reject(const char* code, fmt::format_string<Args...> format, Args&&... args) {
  throw BadRequest{{code, fmt::format(format, std::forward<Args>(args)...)}};
}

[[noreturn]] void reject_type(const char* key, const char* expected, const json& found) {
  reject("invalid_request", "'{}' must be {}, found {} ({})", key, expected, found.type_name(),
         found.is_structured() ? fmt::format("{} elements", found.size())
                               : cut_short(found.dump(-1, ' ', false, json::error_handler_t::replace), 60));
}

// One request object (for OpenAI lines its body) with typed, range-checked access to its fields.
class Fields {
 public:
  // OpenAI clients send null for a field left at its default.
  Fields(const json& object, bool null_is_absent) : object_(object), null_is_absent_(null_is_absent) {}

  const json* find(const char* key) const {
    const auto it = object_.find(key);
    if (it == object_.end() || (null_is_absent_ && it->is_null())) return nullptr;
    return &*it;
  }

  std::int64_t integer(const char* key, std::int64_t otherwise, std::int64_t low, std::int64_t high) const {
    const json* value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_number_integer()) reject_type(key, "an integer", *value);
    const bool too_large =
        value->is_number_unsigned() && value->get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX);
    if (too_large || value->get<std::int64_t>() < low || value->get<std::int64_t>() > high)
      reject("invalid_request", "'{}' must be an integer from {} to {}, found {}", key, low, high,
             value->dump());
    return value->get<std::int64_t>();
  }

  double number(const char* key, double otherwise) const {
    const json* value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_number()) reject_type(key, "a number", *value);
    return value->get<double>();
  }

  bool flag(const char* key) const {
    const json* value = find(key);
    if (value == nullptr) return false;
    if (!value->is_boolean()) reject_type(key, "true or false", *value);
    return value->get<bool>();
  }

 private:
  const json& object_;
  bool null_is_absent_;
};

}  // namespace

class RequestParser::Lines {
 public:
  Lines(Task task, const ModelConfig& config, const TokenizerChoice& tokenizer, const RequestLimits& limits,
        std::int64_t lines)
      : task_(task),
        config_(config),
        tokenizer_(tokenizer),
        limits_(limits),
        ids_(static_cast<std::size_t>(lines)) {}

  // Fills `line` with what is known even when it throws BadRequest.
  Request parse(std::string_view text, std::int64_t number, RequestLine& line) {
    line.id = std::to_string(number);
    line.model = config_.name;
    json object = json::parse(text, nullptr, false);
    if (object.is_discarded()) reject("invalid_json", "line {} is not valid JSON", number + 1);
    if (!object.is_object())
      reject("invalid_json", "line {} is not a JSON object but {}", number + 1, object.type_name());
    line.openai = object.contains("custom_id") || object.contains("body") || object.contains("url");
    take_id(object, line);
    if (line.openai) open_envelope(object, line);
    const Fields fields(object, line.openai);
    Request request;
    request.line = number;
    if (task_ == Task::score && (fields.find("context") != nullptr || fields.find("continuation") != nullptr))
      line.continuation = true, take_continuation(fields, request);
    else
      request.tokens = prompt_tokens(object, fields, line);
    if (task_ == Task::generate) {
      take_sampling(fields, line, request);
      take_stop(fields, request);
    }
    check_lengths(request);
    return request;
  }

  void skip(std::string_view text, std::int64_t number) {
    if (const auto id = id_of_line(text, number)) ids_.insert(*id);
  }

 private:
  void take_id(const json& object, RequestLine& line) {
    const char* key = line.openai ? "custom_id" : "id";
    const auto id = object.find(key);
    if (id == object.end()) {
      if (line.openai) reject("invalid_request", "an OpenAI batch line needs 'custom_id'");
    } else if (!id->is_string()) {
      reject_type(key, "a string", *id);
    } else {
      line.id = id->get<std::string>();
    }
    if (!ids_.insert(line.id)) reject("duplicate_id", "id '{}' was used by an earlier line", line.id);
  }

  // Checks method and url, then replaces the line by its body.
  void open_envelope(json& object, RequestLine& line) const {
    const auto text = [&](const char* key) {
      const auto it = object.find(key);
      if (it == object.end()) reject("invalid_request", "an OpenAI batch line needs '{}'", key);
      if (!it->is_string()) reject_type(key, "a string", *it);
      return it->get<std::string>();
    };
    if (text("method") != "POST")
      reject("invalid_request", "'method' must be \"POST\", found \"{}\"", text("method"));
    if (text("url") != "/v1/completions")
      reject("invalid_url", "'url' must be \"/v1/completions\", found \"{}\"", text("url"));
    const auto body = object.find("body");
    if (body == object.end()) reject("invalid_request", "an OpenAI batch line needs 'body'");
    if (!body->is_object()) reject_type("body", "an object", *body);
    json inner = std::move(*body);
    object = std::move(inner);
    const Fields fields(object, true);
    if (const json* model = fields.find("model")) {
      if (!model->is_string()) reject_type("model", "a string", *model);
      line.model = model->get<std::string>();
    }
    if (task_ == Task::score) return;  // the rest only matters to generation
    for (const char* key : {"n", "best_of"})
      if (fields.integer(key, 1, 1, INT32_MAX) != 1)
        reject("unsupported", "'{}' other than 1 is not supported", key);
    for (const char* key : {"echo", "stream"})
      if (fields.flag(key)) reject("unsupported", "'{}' is not supported in a batch", key);
    for (const char* key : {"presence_penalty", "frequency_penalty"})
      if (fields.number(key, 0) != 0) reject("unsupported", "'{}' is not supported", key);
    for (const char* key : {"suffix", "logit_bias"})
      if (fields.find(key) != nullptr) reject("unsupported", "'{}' is not supported", key);
  }

  // Only the continuation is scored: what the text of both, encoded together, has more tokens than the context.
  void take_continuation(const Fields& fields, Request& request) const {
    const json *context = fields.find("context"), *continuation = fields.find("continuation");
    if (fields.find("prompt") != nullptr || fields.find("tokens") != nullptr)
      reject("invalid_request", "give either 'prompt' or 'tokens', or 'context' and 'continuation'");
    if (context == nullptr || continuation == nullptr)
      reject("invalid_request", "'context' and 'continuation' go together: '{}' is not given",
             context == nullptr ? "context" : "continuation");
    if (context->is_string() && continuation->is_string()) {
      const auto& text = context->get_ref<const std::string&>();
      request.score_from = std::ssize(encode("context", text));
      request.tokens = encode("context", text + continuation->get_ref<const std::string&>());
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

  std::vector<std::int32_t> prompt_tokens(const json& object, const Fields& fields,
                                          const RequestLine& line) const {
    const json* prompt = fields.find("prompt");
    const json* tokens = fields.find("tokens");
    if (prompt != nullptr && tokens != nullptr)
      reject("invalid_request", "give either 'prompt' or 'tokens', not both");
    if (prompt == nullptr && tokens == nullptr)
      reject("invalid_request", "neither 'prompt' nor 'tokens' is given ({} fields)", object.size());
    if (tokens != nullptr) return token_ids("tokens", *tokens);
    if (prompt->is_string()) return encode("prompt", prompt->get<std::string>());
    // An OpenAI prompt may be an array: of token ids, or of one text.
    if (line.openai && prompt->is_array() && prompt->size() == 1 && prompt->front().is_string())
      return encode("prompt", prompt->front().get<std::string>());
    if (line.openai && prompt->is_array() && !prompt->empty() && prompt->front().is_number())
      return token_ids("prompt", *prompt);
    reject_type("prompt", "a string", *prompt);
  }

  std::vector<std::int32_t> token_ids(const char* key, const json& array) const {
    if (!array.is_array()) reject_type(key, "an array of token ids", array);
    if (array.empty()) reject("invalid_request", "'{}' is empty", key);
    std::vector<std::int32_t> ids;
    ids.reserve(array.size());
    for (const json& item : array) {
      if (!item.is_number_integer()) reject_type(key, "an array of integers", item);
      const bool fits = item.is_number_unsigned() &&
                        item.get<std::uint64_t>() < static_cast<std::uint64_t>(config_.vocab_size);
      if (!fits)
        reject("token_out_of_range", "token id {} in '{}' at {} is not in 0 … {}", item.dump(), key,
               ids.size(), config_.vocab_size - 1);
      ids.push_back(item.get<std::int32_t>());
    }
    return ids;
  }

  std::vector<std::int32_t> encode(const char* key, const std::string& text) const {
    if (tokenizer_.tokenizer == nullptr)
      reject("no_tokenizer", "{}: {}", tokenizer_.why_none,
             key == std::string_view("prompt") ? "give 'tokens' instead of 'prompt'"
                                               : "give token ids instead of text");
    std::vector<std::int32_t> ids;
    if (config_.bos_token_id) ids.push_back(static_cast<std::int32_t>(*config_.bos_token_id));
    const auto text_ids = tokenizer_.tokenizer->encode(text);
    ids.insert(ids.end(), text_ids.begin(), text_ids.end());
    if (ids.empty()) reject("invalid_request", "'{}' is empty and the model has no bos token", key);
    return ids;
  }

  void take_sampling(const Fields& fields, const RequestLine& line, Request& request) const {
    request.max_tokens = fields.integer("max_tokens", 16, 1, INT64_MAX);
    const double temperature = fields.number("temperature", 0);
    if (!(temperature >= 0) || !std::isfinite(static_cast<float>(temperature)))
      reject("invalid_request", "'temperature' must be a float32 number of 0 or more, found {}", temperature);
    request.temperature = static_cast<float>(temperature);
    request.top_k = static_cast<std::int32_t>(fields.integer("top_k", 0, 0, INT32_MAX));
    const double top_p = fields.number("top_p", 1);
    if (!(static_cast<float>(top_p) > 0 && top_p <= 1))
      reject("invalid_request", "'top_p' must be a float32 number above 0 and at most 1, found {}", top_p);
    request.top_p = static_cast<float>(top_p);
    const json* seed = fields.find("seed");
    if (seed == nullptr)
      request.seed = XXH3_64bits(line.id.data(), line.id.size());
    else if (seed->is_number_unsigned())
      request.seed = seed->get<std::uint64_t>();
    else
      request.seed = static_cast<std::uint64_t>(fields.integer("seed", 0, INT64_MIN, INT64_MAX));
    // OpenAI gives the number of alternatives wanted; the chosen token's own is what we give.
    request.logprobs = line.openai
                           ? fields.find("logprobs") != nullptr && (fields.integer("logprobs", 0, 0, 5), true)
                           : fields.flag("logprobs");
  }

  void take_stop(const Fields& fields, Request& request) const {
    const json* stop = fields.find("stop");
    if (stop == nullptr) return;
    if (stop->is_string()) {
      request.stop.push_back(stop->get<std::string>());
    } else if (stop->is_array()) {
      for (const json& item : *stop) {
        if (!item.is_string()) reject_type("stop", "an array of strings", item);
        request.stop.push_back(item.get<std::string>());
      }
    } else {
      reject_type("stop", "a string or an array of strings", *stop);
    }
    for (const std::string& item : request.stop)
      if (item.empty()) reject("invalid_request", "'stop' holds an empty string");
    if (!request.stop.empty() && tokenizer_.tokenizer == nullptr)
      reject("no_tokenizer", "{}: 'stop' strings need one", tokenizer_.why_none);
  }

  void check_lengths(const Request& request) const {
    const auto prompt = static_cast<std::int64_t>(request.tokens.size());
    if (prompt > config_.max_context || request.max_tokens > config_.max_context - prompt)
      reject("context_length_exceeded",
             "{} prompt tokens + {} max_tokens exceed the model's max_context of {}", prompt,
             request.max_tokens, config_.max_context);
    if (request.cached_tokens() > limits_.cached_tokens)
      reject(
          kKvCacheExceeded,
          "{} prompt tokens + {} max_tokens can never fit the KV cache of {} tokens: raise --kv-cache-bytes",
          prompt, request.max_tokens, limits_.cached_tokens);
  }

  Task task_;
  const ModelConfig& config_;
  const TokenizerChoice& tokenizer_;
  RequestLimits limits_;
  IdSet ids_;
};

RequestParser::RequestParser(Task task, const ModelConfig& config, const TokenizerChoice& tokenizer,
                             const RequestLimits& limits, std::int64_t lines)
    : lines_(std::make_unique<Lines>(task, config, tokenizer, limits, lines)) {}
RequestParser::RequestParser(RequestParser&&) noexcept = default;
RequestParser::~RequestParser() = default;

bool RequestParser::parse(std::string_view text, std::int64_t number, RequestLine& line, Request& request) {
  line = {};
  try {
    request = lines_->parse(text, number, line);
    return true;
  } catch (const BadRequest& bad) {
    line.error = bad.error;
  } catch (const Error& error) {  // from the tokenizer: this text cannot be encoded
    line.error = {"invalid_request", error.what()};
  }
  return false;
}

void RequestParser::skip(std::string_view text, std::int64_t number) {
  lines_->skip(text, number);
}

RequestFile parse_requests(const std::string& text, const std::string& path, Task task,
                           const ModelConfig& config, const TokenizerChoice& tokenizer,
                           const RequestLimits& limits) {
  if (text.find_first_not_of(" \t\r\n") == std::string::npos)
    throw_bad_input("{}: the request file is empty", path);
  RequestParser parser(task, config, tokenizer, limits);
  RequestFile file;
  for (std::size_t at = 0; at < text.size();) {
    note_progress();
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const auto number = std::ssize(file.lines);
    const std::string_view here = std::string_view(text).substr(at, end - at);
    RequestLine& line = file.lines.emplace_back();
    if (Request request; !is_blank(here) && parser.parse(here, number, line, request)) {
      line.request = std::ssize(file.requests);
      file.requests.push_back(std::move(request));
    }
    at = end + 1;
  }
  return file;
}

}  // namespace ptrt
