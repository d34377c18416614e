#include "launch/requests/request_parser.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/base/progress.h"
#include "launch/requests/bad_request.h"
#include "launch/requests/id_set.h"
#include "launch/requests/line_id.h"
#include "launch/requests/line_json.h"
#include "launch/requests/output_fields.h"
#include "launch/requests/prompt_reader.h"
#include "launch/requests/sampling_fields.h"
#include "launch/streams/request_input.h"
#include "model_io/config/strict_json.h"

namespace ptrt {
namespace {

using nlohmann::json;

constexpr std::int64_t kDefaultMaxTokens = 16;

}  // namespace

class RequestParser::Lines {
 public:
  Lines(Task task, const ModelConfig& config, const TokenizerChoice& tokenizer, const RequestLimits& limits,
        std::int64_t lines, const RequestHelpers& helpers)
      : task_(task),
        config_(config),
        helpers_(helpers),
        prompts_(config, tokenizer, helpers),
        limits_(limits),
        ids_(static_cast<std::size_t>(lines)) {}

  void ignore_unknown_fields(IgnoredFields& ignored) { ignored_ = &ignored; }

  // Fills `line` with what is known even when it throws BadRequest.
  Request parse(std::string_view text, std::int64_t number, RequestLine& line) {
    line.id = std::to_string(number);
    const LineJson read = read_line_json(text, number);
    const json& object = read.value;
    if (!object.is_object())
      reject("invalid_json", "line {} is not a JSON object but {}", number + 1, object.type_name());
    line.openai = object.contains("custom_id") || object.contains("body") || object.contains("url");
    const Fields outer(object, line.openai ? kEnvelope : kPlain, task_);
    take_id(outer, line);
    if (read.has_twice)
      reject("invalid_request", "the key '{}' is given twice in one object", cut_short(read.key_twice, 60));
    outer.refuse_unsupported(ignored_);
    Request request;
    if (line.openai)
      request = parse_body(outer, text, line);
    else
      request = parse_request(outer, text, line);
    outer.refuse_unread();
    request.line = number;
    return request;
  }

  void skip(std::string_view text, std::int64_t number) {
    if (const auto id = id_of_line(text, number)) ids_.insert(*id);
  }

 private:
  void take_id(const Fields& fields, RequestLine& line) {
    const auto id = line.openai ? fields.text("custom_id") : fields.text("id");
    if (id)
      line.id = *id;
    else if (line.openai)
      reject("invalid_request", "an OpenAI batch line needs 'custom_id'");
    if (!ids_.insert(line.id)) reject("duplicate_id", "id '{}' was used by an earlier line", line.id);
  }

  Request parse_body(const Fields& envelope, std::string_view text, RequestLine& line) const {
    const auto method = envelope.text("method"), url = envelope.text("url");
    const json* body = envelope.find("body");
    const char* missing = !method ? "method" : !url ? "url" : body == nullptr ? "body" : nullptr;
    if (missing != nullptr) reject("invalid_request", "an OpenAI batch line needs '{}'", missing);
    if (*method != "POST") reject("invalid_request", "'method' must be \"POST\", found \"{}\"", *method);
    line.chat = *url == "/v1/chat/completions";
    if (!line.chat && *url != "/v1/completions")
      reject("invalid_url", "'url' must be \"/v1/completions\" or \"/v1/chat/completions\", found \"{}\"",
             *url);
    if (!body->is_object()) reject_type("body", "an object", *body);
    const Fields fields(*body, line.chat ? kChat : kCompletions, task_);
    fields.refuse_unsupported(ignored_);
    line.model = fields.text("model").value_or(config_.name);
    Request request = parse_request(fields, text, line);
    fields.refuse_unread();
    return request;
  }

  Request parse_request(const Fields& fields, std::string_view text, RequestLine& line) const {
    Request request;
    if (!line.openai) line.chat = fields.find("messages") != nullptr;
    std::optional<std::int64_t> max_tokens;
    if (task_ == Task::generate) max_tokens = read_max_tokens(fields);
    // An answer of a chat is as long as it gets.
    const std::int64_t room = max_tokens.value_or(task_ == Task::score ? 0
                                                  : line.chat          ? 1
                                                                       : kDefaultMaxTokens);
    prompts_.read(fields, text, task_, room, line, request);
    if (task_ == Task::generate) {
      const std::int64_t left = config_.max_context - std::ssize(request.tokens);
      request.max_tokens = line.chat && !max_tokens ? std::max<std::int64_t>(left, 1) : room;
      read_sampling(fields, prompts_, line, request);
      request.rules.output = read_output(fields, text, line, helpers_.output);
      if (request.rules.output) check_output(request);
    } else {
      read_logprobs(fields, line, request);
    }
    check_lengths(request);
    return request;
  }

  void check_output(const Request& request) const {
    prompts_.need_tokenizer("structured output needs one");
    if (config_.eos_token_ids.empty() && request.stop_tokens.empty())
      reject("unsupported",
             "structured output needs an eos token, which the model does not have, or 'stop_token_ids'");
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
  RequestHelpers helpers_;
  PromptReader prompts_;
  RequestLimits limits_;
  IdSet ids_;
  IgnoredFields* ignored_ = nullptr;
};

RequestParser::RequestParser(Task task, const ModelConfig& config, const TokenizerChoice& tokenizer,
                             const RequestLimits& limits, std::int64_t lines, const RequestHelpers& helpers)
    : lines_(std::make_unique<Lines>(task, config, tokenizer, limits, lines, helpers)) {}
RequestParser::RequestParser(RequestParser&&) noexcept = default;
RequestParser::~RequestParser() = default;

void RequestParser::ignore_unknown_fields(IgnoredFields& ignored) {
  lines_->ignore_unknown_fields(ignored);
}

bool RequestParser::parse(std::string_view text, std::int64_t number, RequestLine& line, Request& request) {
  line = {};
  try {
    request = lines_->parse(text, number, line);
    return true;
  } catch (const BadRequest& bad) {
    line.error = bad.error;
  } catch (const HelperError& none) {
    line.error = {none.code, none.message};
  } catch (const HelperStopped&) {
    throw;
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
                           const RequestLimits& limits, const RequestHelpers& helpers) {
  if (text.find_first_not_of(" \t\r\n") == std::string::npos)
    throw_bad_input("{}: the request file is empty", path);
  RequestParser parser(task, config, tokenizer, limits, 0, helpers);
  RequestFile file;
  for (std::size_t at = without_mark(text).data() - text.data(); at < text.size();) {
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
