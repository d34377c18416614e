// Request files: a line gives a request that can be run or an error line, whatever its neighbours are.
#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "driver/json_mutator.h"
#include "driver/target.h"
#include "kernels/base/error.h"
#include "launch/jsonl/result_lines.h"
#include "launch/requests/request_parser.h"
#include "launch/streams/request_input.h"
#include "model_io/text/unicode.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"

namespace ptrt::fuzz {
namespace {

constexpr std::size_t kMaxLines = 12;
constexpr std::int64_t kCachedTokens = 400;

constexpr std::array kKeys = std::to_array<std::string_view>({
    "id",
    "prompt",
    "tokens",
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "stop",
    "logprobs",
    "custom_id",
    "method",
    "url",
    "body",
    "model",
    "n",
    "best_of",
    "echo",
    "stream",
    "presence_penalty",
    "frequency_penalty",
    "suffix",
    "logit_bias",
    "min_p",
    "repetition_penalty",
    "allowed_token_ids",
    "bad_words",
    "ignore_eos",
    "stop_token_ids",
    "prompt_logprobs",
    "truncate_prompt_tokens",
    "max_completion_tokens",
    "messages",
    "role",
    "content",
    "context",
    "continuation",
    "response_format",
    "structured_outputs",
    "user",
    "metadata",
    "min_tokens",
    "include_stop_str_in_output",
    "truncation_side",
    "add_special_tokens",
    "return_token_ids",
    "top_logprobs",
});
constexpr std::array kValues = std::to_array<std::string_view>({
    "\"POST\"",
    "\"/v1/completions\"",
    "\"/v1/chat/completions\"",
    "[1, 2, 3]",
    "[\"a\", \"b\"]",
    "[256, 257, 258]",
    "\"the cat sat\"",
    "\"0\"",
    "\"1\"",
    "\"id\"",
    "500",
    "512",
    "0.7",
    "\"<|im_start|>\"",
    "[\"\\n\"]",
    R"({"5": 1.5, "7": -300})",
    "\"right\"",
    R"({"prompt": "a", "max_tokens": 2})",
    R"([{"role": "user", "content": "hello"}])",
});

std::string golden_tokenizer(const std::string& name) {
  std::ifstream file(PTRT_GOLDEN_DIR "/" + name + ".json");
  return nlohmann::json::parse(file).at("tokenizer").dump();
}

struct Model {
  ModelConfig config;
  TokenizerChoice tokenizer;
};

Model make_model(std::int64_t vocab_size, const std::string& kind, const std::string& bytes) {
  Model model;
  model.config.name = "m";
  model.config.vocab_size = vocab_size;
  model.config.max_context = 512;
  model.config.bos_token_id = 0;
  model.config.eos_token_ids = {1};
  model.tokenizer = make_tokenizer({kind, {bytes.begin(), bytes.end()}, "m.h5"}, model.config);
  expect(kind.empty() == (model.tokenizer.tokenizer == nullptr), "no tokenizer: {}",
         model.tokenizer.why_none);
  return model;
}

const std::vector<Model>& models() {
  static const std::vector<Model> all = [] {
    std::vector<Model> models;
    models.push_back(make_model(259, "bytes", ""));
    models.push_back(make_model(300, "", ""));
    models.push_back(make_model(1000, "huggingface", golden_tokenizer("llama3")));
    return models;
  }();
  return all;
}

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    lines.emplace_back(text.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

bool is_empty(std::string_view text) {
  return std::ranges::all_of(lines_of(text), [](const std::string& line) { return is_blank(line); });
}

void check_rules(const Request& request, const ModelConfig& config) {
  const LogitRules& rules = request.rules;
  expect(request.min_p >= 0 && request.min_p <= 1, "min_p {}", request.min_p);
  expect(rules.repetition_penalty > 0 && std::isfinite(rules.repetition_penalty), "repetition_penalty {}",
         rules.repetition_penalty);
  expect(rules.min_tokens >= 0 && rules.min_tokens <= request.max_tokens, "min_tokens {}", rules.min_tokens);
  expect(request.top_logprobs >= 0 && request.top_logprobs <= kMaxTopLogprobs &&
             request.prompt_logprobs >= -1 && request.prompt_logprobs <= kMaxTopLogprobs,
         "{} and {} alternatives", request.top_logprobs, request.prompt_logprobs);
  const auto in_order = [&](const std::vector<std::int32_t>& ids) {
    return std::ranges::adjacent_find(ids, std::ranges::greater_equal()) == ids.end() &&
           (ids.empty() || (ids.front() >= 0 && ids.back() < config.vocab_size));
  };
  expect(in_order(rules.allowed) && in_order(request.stop_tokens), "line {} has ids out of order",
         request.line);
  for (const auto& word : rules.bad_words)
    expect(!word.empty(), "line {} has an empty bad word", request.line);
  for (const TokenBias& bias : rules.bias)
    expect(bias.token >= 0 && bias.token < config.vocab_size && std::abs(bias.bias) <= 100, "bias {} of {}",
           bias.bias, bias.token);
}

void check_request(const Request& request, Task task, const ModelConfig& config) {
  const auto length = static_cast<std::int64_t>(request.tokens.size());
  expect(length > 0, "line {} has no token", request.line);
  for (const std::int32_t id : request.tokens)
    expect(id >= 0 && id < config.vocab_size, "line {} has the token {}", request.line, id);
  expect(request.max_tokens >= 0 && length + request.max_tokens <= config.max_context &&
             request.cached_tokens() <= kCachedTokens,
         "line {}: {} + {} tokens", request.line, length, request.max_tokens);
  expect(request.score_from >= 1 && request.score_from <= std::max<std::int64_t>(length - 1, 1),
         "line {}: scores {} tokens from {}", request.line, length, request.score_from);
  if (task == Task::score) return;
  const bool only_prompt = request.max_tokens == 0;
  expect(request.samples >= 1 && request.samples <= kMaxSamples && (request.samples == 1 || !only_prompt),
         "line {}: {} samples of {} tokens", request.line, request.samples, request.max_tokens);
  expect(request.temperature >= 0 && std::isfinite(request.temperature), "temperature {}",
         request.temperature);
  expect(request.top_p > 0 && request.top_p <= 1, "top_p {}", request.top_p);
  expect(request.top_k >= 0, "top_k {}", request.top_k);
  for (const std::string& stop : request.stop)
    expect(!stop.empty(), "line {} has an empty stop", request.line);
  check_rules(request, config);
}

void check_error(const RequestLine& line, std::int64_t number) {
  expect(!line.error.code.empty() && !line.error.message.empty(), "line {} has neither request nor error",
         number);
  const std::string result = error_result(line, number);
  expect(result.find('\n') == std::string::npos, "an error line has a newline: {}", result);
  const auto json = nlohmann::json::parse(result, nullptr, false);
  expect(json.is_object(), "an error line is no JSON object: {}", result);
  expect(json.at(line.openai ? "custom_id" : "id") == sanitize_utf8(line.id),
         "an error line has another id: {}", result);
}

// A line after as many blank ones as it has before it, so that it has the same number.
void check_alone(const RequestFile& file, std::size_t number, const std::string& text, Task task,
                 const Model& model) {
  const RequestFile alone = parse_requests(std::string(number, '\n') + text, "alone", task, model.config,
                                           model.tokenizer, {kCachedTokens});
  const RequestLine &here = file.lines[number], &there = alone.lines.back();
  expect(here.id == there.id && here.openai == there.openai && here.model == there.model &&
             here.continuation == there.continuation,
         "line {} is '{}' alone and '{}' here", number, there.id, here.id);
  expect(here.error.code == there.error.code && here.error.message == there.error.message,
         "line {} is an error ({}) alone and ({}) here", number, there.error.message, here.error.message);
  if (here.request >= 0)
    expect(file.requests[static_cast<std::size_t>(here.request)] == alone.requests.back(),
           "line {} is another request alone", number);
}

void check_file(const std::string& text, const std::vector<std::string>& lines, Task task,
                const Model& model) {
  const RequestFile file =
      parse_requests(text, "r.jsonl", task, model.config, model.tokenizer, {kCachedTokens});
  expect(file.lines.size() == lines.size(), "{} lines became {}", lines.size(), file.lines.size());
  std::set<std::string> ids, request_ids;
  std::size_t requests = 0;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const RequestLine& line = file.lines[i];
    if (is_blank(lines[i])) {
      expect(line.request < 0 && line.error.code.empty(), "blank line {} is a request or an error", i);
      continue;
    }
    if (line.request >= 0) {
      expect(static_cast<std::size_t>(line.request) == requests, "line {} is request {}", i, line.request);
      expect(file.requests.at(requests).line == static_cast<std::int64_t>(i), "line {} has another's request",
             i);
      // A line that is no JSON has its number as its id, which another line may have as its own.
      expect(request_ids.insert(line.id).second, "two requests have the id '{}'", line.id);
      check_request(file.requests[requests++], task, model.config);
    } else {
      check_error(line, static_cast<std::int64_t>(i));
    }
    if (line.error.code == "duplicate_id")
      expect(ids.count(line.id) == 1, "no line before line {} has its id '{}'", i, line.id);
    else
      check_alone(file, i, lines[i], task, model);
    ids.insert(line.id);
  }
  expect(requests == file.requests.size(), "{} requests belong to no line", file.requests.size() - requests);
}

}  // namespace

void run_input(std::string_view input) {
  const std::vector<std::string> lines = lines_of(input);
  if (lines.size() > kMaxLines || is_empty(input)) return;
  // One of the cases; which one follows from the input, so that it is the same when the input is run again.
  const std::size_t number = std::hash<std::string_view>()(input);
  const Model& model = models()[number / 2 % models().size()];
  check_file(std::string(input), lines, number % 2 == 0 ? Task::generate : Task::score, model);
}

std::string mutate_input(std::string input, Random& random) {
  std::vector<std::string> lines = lines_of(input);
  if (lines.empty() || random.one_in(16)) return mutate_bytes(std::move(input), random);
  const std::size_t at = random.below(lines.size());
  const auto place = lines.begin() + static_cast<std::ptrdiff_t>(at);
  switch (random.below(12)) {
    case 0:
      lines.insert(place, std::string(lines[random.below(lines.size())]));
      break;
    case 1:
      lines.erase(place);
      break;
    case 2:
      std::swap(lines[at], lines[random.below(lines.size())]);
      break;
    default:
      lines[at] = mutate_json(lines[at], {kKeys, kValues}, random);
  }
  const bool windows = random.one_in(30);
  std::string text;
  for (const std::string& line : lines) text += line + (windows ? "\r\n" : "\n");
  if (random.one_in(10) && !text.empty()) text.pop_back();
  return text;
}

}  // namespace ptrt::fuzz
