#include "launch/jsonl/answer_tokens.h"

#include <algorithm>

#include "model_io/text/unicode.h"

namespace ptrt {
namespace {

// The first `count` of them.
std::span<const TokenLogprob> first_of(const std::vector<std::vector<TokenLogprob>>& lists, std::size_t index,
                                       std::int64_t count) {
  if (count <= 0 || index >= lists.size()) return {};
  const std::span<const TokenLogprob> all = lists[index];
  return all.first(std::min(all.size(), static_cast<std::size_t>(count)));
}

void add_prompt(std::vector<AnswerToken>& tokens, const Request& request, const Completion& completion,
                std::int64_t alternatives) {
  for (std::size_t i = 0; i < request.tokens.size(); i++) {
    AnswerToken& token = tokens.emplace_back();
    token.id = request.tokens[i];
    if (i == 0 || i > completion.prompt_logprobs.size()) continue;
    token.logprob = completion.prompt_logprobs[i - 1];
    token.top = first_of(completion.prompt_top_logprobs, i - 1, alternatives);
  }
}

}  // namespace

std::vector<AnswerToken> answer_tokens(const RequestLine& line, const Request& request,
                                       const Completion& completion, const Output& output) {
  std::vector<AnswerToken> tokens;
  if (line.echo) add_prompt(tokens, request, completion, request.top_logprobs);
  for (std::size_t i = 0; i < output.tokens.size(); i++) {
    AnswerToken& token = tokens.emplace_back();
    token.id = output.tokens[i];
    if (i < output.logprobs.size()) token.logprob = output.logprobs[i];
    token.top = first_of(output.top_logprobs, i, request.top_logprobs);
  }
  return tokens;
}

std::vector<AnswerToken> prompt_answer(const RequestLine& line, const Request& request,
                                       const Completion& completion) {
  std::vector<AnswerToken> tokens;
  add_prompt(tokens, request, completion, line.prompt_logprobs);
  return tokens;
}

std::string answer_text(const RequestLine& line, const Request& request, const Output& output,
                        const Tokenizer& tokenizer) {
  std::string text;
  if (line.echo)
    for (const std::int32_t id : request.tokens) text += tokenizer.token_bytes(id);
  return sanitize_utf8(text + output.text);
}

std::vector<const Output*> samples_of(const Completion& completion) {
  std::vector<const Output*> samples{&completion};
  for (const Output& output : completion.more) samples.push_back(&output);
  return samples;
}

std::int64_t generated_tokens(const Completion& completion) {
  std::int64_t count = std::ssize(completion.tokens);
  for (const Output& output : completion.more) count += std::ssize(output.tokens);
  return count;
}

}  // namespace ptrt
