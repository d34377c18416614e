#include "launch/jsonl/openai_body.h"

#include <fmt/format.h>

#include <utility>

#include "launch/jsonl/answer_tokens.h"
#include "launch/jsonl/openai_logprobs.h"

namespace ptrt {
namespace {

using nlohmann::ordered_json;

class Body {
 public:
  Body(const RequestLine& line, const Request& request, const Completion& completion,
       const Tokenizer* tokenizer)
      : line_(line),
        request_(request),
        completion_(completion),
        tokenizer_(tokenizer),
        names_{tokenizer, line.tokens_as_ids} {}

  ordered_json json() const {
    ordered_json body{{"id", fmt::format("{}-{}", line_.chat ? "chatcmpl" : "cmpl", request_.line)},
                      {"object", line_.chat ? "chat.completion" : "text_completion"},
                      {"created", 0}};
    body["model"] = line_.model;
    ordered_json choices = ordered_json::array();
    for (const Output* output : samples_of(completion_)) choices.push_back(choice(choices.size(), *output));
    body["choices"] = std::move(choices);
    body["usage"] = usage_of(request_, completion_);
    if (line_.chat) add_prompt(body);
    return body;
  }

 private:
  ordered_json choice(std::size_t index, const Output& output) const {
    ordered_json choice{{"index", index}};
    const std::string text =
        tokenizer_ != nullptr ? answer_text(line_, request_, output, *tokenizer_) : std::string();
    if (line_.chat)
      choice["message"] = {{"role", "assistant"}, {"content", text}, {"refusal", nullptr}};
    else
      choice["text"] = text;
    if (tokenizer_ == nullptr || line_.token_ids) choice["token_ids"] = output.tokens;
    choice["logprobs"] = logprobs(output);
    choice["finish_reason"] = name_of(output.finish_reason);
    if (!line_.chat) add_prompt(choice);
    return choice;
  }

  ordered_json logprobs(const Output& output) const {
    if (!request_.logprobs) return nullptr;
    const auto tokens = answer_tokens(line_, request_, completion_, output);
    return line_.chat ? chat_logprobs(tokens, names_) : completion_logprobs(tokens, names_);
  }

  // What vLLM adds on request: in a chat completion to the body, else to each choice.
  void add_prompt(ordered_json& object) const {
    if (line_.token_ids) object["prompt_token_ids"] = request_.tokens;
    if (line_.prompt_logprobs >= 0)
      object["prompt_logprobs"] = vllm_prompt_logprobs(prompt_answer(line_, request_, completion_), names_);
  }

  const RequestLine& line_;
  const Request& request_;
  const Completion& completion_;
  const Tokenizer* tokenizer_;
  TokenNames names_;
};

}  // namespace

ordered_json openai_body(const RequestLine& line, const Request& request, const Completion& completion,
                         const Tokenizer* tokenizer) {
  return Body(line, request, completion, tokenizer).json();
}

const char* name_of(FinishReason reason) {
  return reason == FinishReason::stop ? "stop" : "length";
}

ordered_json usage_of(const Request& request, const Completion& completion) {
  const std::int64_t prompt = std::ssize(request.tokens), generated = generated_tokens(completion);
  return {{"prompt_tokens", prompt}, {"completion_tokens", generated}, {"total_tokens", prompt + generated}};
}

}  // namespace ptrt
