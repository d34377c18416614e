#include "launch/requests/sampling_fields.h"

#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>

#include "launch/requests/bad_request.h"

namespace ptrt {
namespace {

using nlohmann::json;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr float kMostBias = 100;

std::uint64_t seed_of(const Fields& fields, const RequestLine& line) {
  const json* seed = fields.find("seed");
  if (seed == nullptr) return XXH3_64bits(line.id.data(), line.id.size());
  if (seed->is_number_unsigned()) return seed->get<std::uint64_t>();
  return static_cast<std::uint64_t>(fields.integer("seed", 0, INT64_MIN, INT64_MAX));
}

void read_choice(const Fields& fields, const RequestLine& line, Request& request) {
  request.temperature = fields.number("temperature", 0, {0, kInfinity});
  const auto top_k = fields.integer("top_k", 0, -1, INT32_MAX);
  request.top_k = static_cast<std::int32_t>(std::max<std::int64_t>(top_k, 0));
  request.top_p = fields.number("top_p", 1, {0, 1, true});
  request.min_p = fields.number("min_p", 0, {0, 1});
  request.seed = seed_of(fields, line);
  request.samples = fields.integer("n", 1, 1, kMaxSamples);
  if (request.samples > 1 && request.temperature == 0)
    reject("invalid_request", "'n' is {}, but temperature 0 has one output: give a 'temperature'",
           request.samples);
  const auto best_of = fields.integer("best_of", 1, INT32_MAX);
  if (best_of && *best_of != request.samples)
    reject("unsupported", "'best_of' is supported only where it equals 'n', found {} and {}", *best_of,
           request.samples);
}

// {"ID": BIAS, …}, beyond ±100 as ±100.
std::vector<TokenBias> bias_of(const Fields& fields, const PromptReader& prompts) {
  std::vector<TokenBias> bias;
  const json* object = fields.find("logit_bias");
  if (object == nullptr) return bias;
  if (!object->is_object()) reject_type("logit_bias", "an object of token ids and numbers", *object);
  for (auto item = object->begin(); item != object->end(); ++item) {
    const std::string& key = item.key();
    std::uint64_t id = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size())
      reject("invalid_request", "'logit_bias' has the key \"{}\", which is no token id", key);
    if (!item->is_number()) reject_type("logit_bias", "an object of token ids and numbers", *item);
    const auto value = std::clamp(item->get<double>(), -double{kMostBias}, double{kMostBias});
    bias.push_back({prompts.token_ids("logit_bias", json::array({id})).front(), static_cast<float>(value)});
  }
  std::ranges::sort(bias, {}, &TokenBias::token);
  for (std::size_t i = 1; i < bias.size(); i++)
    if (bias[i].token == bias[i - 1].token)
      reject("invalid_request", "'logit_bias' has the token id {} twice", bias[i].token);
  return bias;
}

// Ascending, each once.
std::vector<std::int32_t> id_set(std::vector<std::int32_t> ids) {
  std::ranges::sort(ids);
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

std::string without_leading_space(const std::string& text) {
  const std::size_t start = text.find_first_not_of(" \t\n\v\f\r");
  return start == std::string::npos ? std::string() : text.substr(start);
}

// Each word as it is at the start of a text, and as it is inside, where a space before it makes another first token
// and no further one.
std::vector<std::vector<std::int32_t>> bad_words(const Fields& fields, const PromptReader& prompts) {
  std::vector<std::vector<std::int32_t>> words;
  for (const std::string& text : fields.texts("bad_words", false)) {
    const std::string word = without_leading_space(text);
    const auto alone = prompts.encode("bad_words", word);
    if (alone.empty()) reject("invalid_request", "'bad_words' holds \"{}\", which makes no token", text);
    const auto inside = prompts.encode("bad_words", " " + word);
    words.push_back(alone);
    if (inside.size() == alone.size() && inside.front() != alone.front()) words.push_back(inside);
  }
  return words;
}

void read_rules(const Fields& fields, const PromptReader& prompts, Request& request) {
  LogitRules& rules = request.rules;
  rules.repetition_penalty = fields.number("repetition_penalty", 1, {0, kInfinity, true});
  rules.presence_penalty = fields.number("presence_penalty", 0, {-2, 2});
  rules.frequency_penalty = fields.number("frequency_penalty", 0, {-2, 2});
  rules.bias = bias_of(fields, prompts);
  if (const json* allowed = fields.find("allowed_token_ids"))
    rules.allowed = id_set(prompts.token_ids("allowed_token_ids", *allowed));
  rules.bad_words = bad_words(fields, prompts);
  rules.min_tokens = fields.integer("min_tokens", 0, 0, INT64_MAX);
  if (rules.min_tokens > request.max_tokens)
    reject("invalid_request", "'min_tokens' is {}, but at most {} tokens are generated", rules.min_tokens,
           request.max_tokens);
}

void read_end(const Fields& fields, const PromptReader& prompts, Request& request) {
  request.stop = fields.texts("stop", true);
  if (!request.stop.empty()) prompts.need_tokenizer("'stop' strings need one");
  const json* stop_tokens = fields.find("stop_token_ids");
  if (stop_tokens != nullptr && *stop_tokens != json::array())
    request.stop_tokens = id_set(prompts.token_ids("stop_token_ids", *stop_tokens));
  request.include_stop = fields.flag("include_stop_str_in_output");
  request.ignore_eos = fields.flag("ignore_eos");
}

// With `echo` the answer says of the prompt what it says of the output.
void read_prompt_answer(const Fields& fields, RequestLine& line, Request& request) {
  line.prompt_logprobs = fields.integer("prompt_logprobs", -1, 0, kMaxTopLogprobs);
  request.prompt_logprobs = line.prompt_logprobs;
  if (!line.chat) line.echo = fields.flag("echo");
  if (line.echo && request.logprobs)
    request.prompt_logprobs = std::max(request.prompt_logprobs, request.top_logprobs);
  if (request.max_tokens == 0 && !line.echo && line.prompt_logprobs < 0)
    reject("invalid_request", "'max_tokens' is 0 without 'echo' or 'prompt_logprobs': nothing is asked for");
  if (request.max_tokens == 0 && request.samples > 1)
    reject("invalid_request", "'n' is {}, but 'max_tokens' is 0: there are no outputs", request.samples);
  if (!line.openai) return;
  line.token_ids = fields.flag("return_token_ids");
  line.tokens_as_ids = fields.flag("return_tokens_as_token_ids");
}

}  // namespace

std::optional<std::int64_t> read_max_tokens(const Fields& fields) {
  const auto tokens = fields.integer("max_tokens", 0, INT64_MAX);
  const auto completion = fields.integer("max_completion_tokens", 0, INT64_MAX);
  if (tokens && completion && *tokens != *completion)
    reject("invalid_request", "'max_tokens' is {} and 'max_completion_tokens' {}: give one of them", *tokens,
           *completion);
  return tokens ? tokens : completion;
}

void read_logprobs(const Fields& fields, const RequestLine& line, Request& request) {
  const json* value = fields.find("logprobs");
  const bool is_flag = value != nullptr && value->is_boolean();
  if (line.openai && line.chat) {
    request.logprobs = fields.flag("logprobs");
    request.top_logprobs = fields.integer("top_logprobs", 0, 0, kMaxTopLogprobs);
    if (request.top_logprobs > 0 && !request.logprobs)
      reject("invalid_request", "'top_logprobs' needs 'logprobs': true");
  } else if (!line.openai && is_flag) {
    request.logprobs = fields.flag("logprobs");
  } else if (const auto count = fields.integer("logprobs", 0, kMaxTopLogprobs)) {
    request.logprobs = true;
    request.top_logprobs = *count;
  }
}

void read_sampling(const Fields& fields, const PromptReader& prompts, RequestLine& line, Request& request) {
  read_choice(fields, line, request);
  read_rules(fields, prompts, request);
  read_end(fields, prompts, request);
  read_logprobs(fields, line, request);
  read_prompt_answer(fields, line, request);
}

}  // namespace ptrt
