// Answers with samples, alternatives and the prompt, in each form, against JSON written by hand after the documents
// of OpenAI's and vLLM's bodies.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "launch/jsonl/result_lines.h"
#include "launch/small_model.h"

namespace ptrt {
namespace {

using nlohmann::json;

class AnswerShapes : public testing::Test {
 protected:
  AnswerShapes() {
    line_.id = "c";
    line_.model = "m";
    request_.line = 4;
    request_.tokens = {256, 'a', 'b'};
    request_.max_tokens = 2;
    completion_.tokens = {'h', 257};
    completion_.text = "h";
    completion_.finish_reason = FinishReason::stop;
  }

  // Log-probabilities are halves and quarters, which JSON shows as they are.
  void with_logprobs(std::int64_t alternatives) {
    request_.logprobs = true;
    request_.top_logprobs = alternatives;
    completion_.logprobs = {-0.5f, -2.0f};
    if (alternatives > 0)
      completion_.top_logprobs = {{{'h', -0.5f}, {'i', -1.0f}}, {{'x', -0.25f}, {0xC3, -1.5f}}};
  }
  void with_prompt_logprobs() {
    completion_.prompt_logprobs = {-4.0f, -0.75f};
    completion_.prompt_top_logprobs = {{{'c', -0.125f}, {'d', -3.0f}}, {{'b', -0.75f}, {'e', -1.0f}}};
  }
  void with_samples() {
    request_.samples = 2;
    Output second;
    second.tokens = {'o', 'k'};
    second.text = "ok";
    second.finish_reason = FinishReason::length;
    second.logprobs = {-1.0f, -1.25f};
    second.top_logprobs = {{{'o', -1.0f}, {'p', -1.5f}}, {{'k', -1.25f}, {'l', -1.5f}}};
    completion_.more = {second};
  }
  json plain() const { return json::parse(generate_result(line_, request_, completion_, &bytes())); }
  json body() {
    line_.openai = true;
    const json result = plain();
    EXPECT_EQ(result["response"]["status_code"], 200);
    return result["response"]["body"];
  }

  RequestLine line_;
  Request request_;
  Completion completion_;
};

TEST_F(AnswerShapes, PlainAlternatives) {
  with_logprobs(2);
  EXPECT_EQ(plain(), json::parse(R"({"id": "c", "text": "h", "tokens": [104, 257], "finish_reason": "stop",
    "usage": {"prompt_tokens": 3, "completion_tokens": 2}, "logprobs": [-0.5, -2.0],
    "top_logprobs": [[[104, -0.5], [105, -1.0]], [[120, -0.25], [195, -1.5]]]})"));
}

TEST_F(AnswerShapes, PlainSamples) {
  with_logprobs(2);
  with_samples();
  EXPECT_EQ(plain(), json::parse(R"({"id": "c", "choices": [
    {"text": "h", "tokens": [104, 257], "finish_reason": "stop", "logprobs": [-0.5, -2.0],
     "top_logprobs": [[[104, -0.5], [105, -1.0]], [[120, -0.25], [195, -1.5]]]},
    {"text": "ok", "tokens": [111, 107], "finish_reason": "length", "logprobs": [-1.0, -1.25],
     "top_logprobs": [[[111, -1.0], [112, -1.5]], [[107, -1.25], [108, -1.5]]]}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4}})"));
}

TEST_F(AnswerShapes, PlainPrompt) {
  with_prompt_logprobs();
  line_.prompt_logprobs = request_.prompt_logprobs = 1;
  EXPECT_EQ(plain(), json::parse(R"({"id": "c", "text": "h", "tokens": [104, 257], "finish_reason": "stop",
    "usage": {"prompt_tokens": 3, "completion_tokens": 2}, "prompt_logprobs": [null, -4.0, -0.75],
    "prompt_top_logprobs": [null, [[99, -0.125]], [[98, -0.75]]]})"))
      << "one alternative of the two that the engine was asked for";
  line_.prompt_logprobs = 0;
  EXPECT_EQ(plain()["prompt_logprobs"], json::parse("[null, -4.0, -0.75]"));
  EXPECT_FALSE(plain().contains("prompt_top_logprobs"));
}

TEST_F(AnswerShapes, PlainEcho) {
  with_logprobs(1);
  with_prompt_logprobs();
  line_.echo = true;
  EXPECT_EQ(plain(), json::parse(R"({"id": "c", "text": "abh", "tokens": [256, 97, 98, 104, 257],
    "finish_reason": "stop", "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    "logprobs": [null, -4.0, -0.75, -0.5, -2.0],
    "top_logprobs": [null, [[99, -0.125]], [[98, -0.75]], [[104, -0.5]], [[120, -0.25]]]})"));
}

TEST_F(AnswerShapes, CompletionsAlternatives) {
  with_logprobs(2);
  // The token itself follows where it is none of the alternatives. Part of a character, and no text.
  EXPECT_EQ(body(), json::parse(R"({"id": "cmpl-4", "object": "text_completion", "created": 0, "model": "m",
    "choices": [{"index": 0, "text": "h", "logprobs": {"tokens": ["h", ""], "token_logprobs": [-0.5, -2.0],
      "top_logprobs": [{"h": -0.5, "i": -1.0}, {"x": -0.25, "\ufffd": -1.5, "": -2.0}], "text_offset": [0, 1]},
      "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}})"));
}

TEST_F(AnswerShapes, OfEqualTextsTheLikeliestCounts) {
  with_logprobs(2);
  completion_.tokens[1] = 0xC4;
  completion_.top_logprobs[1] = {{0xC3, -0.25f}, {0xC5, -1.0f}};
  EXPECT_EQ(body()["choices"][0]["logprobs"]["top_logprobs"][1], json::parse(R"({"\ufffd": -0.25})"));
}

TEST_F(AnswerShapes, CompletionsEcho) {
  with_logprobs(1);
  with_prompt_logprobs();
  line_.echo = true;
  request_.tokens = {256, 0xC3, 0xA9};
  EXPECT_EQ(body()["choices"][0], json::parse(R"({"index": 0, "text": "éh", "logprobs": {
      "tokens": ["", "\ufffd", "\ufffd", "h", ""], "token_logprobs": [null, -4.0, -0.75, -0.5, -2.0],
      "top_logprobs": [null, {"c": -0.125, "\ufffd": -4.0}, {"b": -0.75, "\ufffd": -0.75}, {"h": -0.5},
        {"x": -0.25, "": -2.0}],
      "text_offset": [0, 0, 0, 1, 2]}, "finish_reason": "stop"})"));
}

// What lm-eval asks for.
TEST_F(AnswerShapes, EchoWithoutOutput) {
  request_.max_tokens = 0;
  completion_.tokens = {};
  completion_.text = "";
  completion_.finish_reason = FinishReason::length;
  request_.logprobs = true;
  request_.top_logprobs = 1;
  with_prompt_logprobs();
  line_.echo = true;
  const json answer = body();
  EXPECT_EQ(answer["choices"][0], json::parse(R"({"index": 0, "text": "ab", "logprobs": {
      "tokens": ["", "a", "b"], "token_logprobs": [null, -4.0, -0.75],
      "top_logprobs": [null, {"c": -0.125, "a": -4.0}, {"b": -0.75}], "text_offset": [0, 0, 1]},
      "finish_reason": "length"})"));
  EXPECT_EQ(answer["usage"],
            json::parse(R"({"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3})"));
}

TEST_F(AnswerShapes, CompletionsSamples) {
  with_samples();
  const json answer = body();
  EXPECT_EQ(answer["choices"], json::parse(R"([
    {"index": 0, "text": "h", "logprobs": null, "finish_reason": "stop"},
    {"index": 1, "text": "ok", "logprobs": null, "finish_reason": "length"}])"));
  EXPECT_EQ(answer["usage"],
            json::parse(R"({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7})"));
}

TEST_F(AnswerShapes, CompletionsAsVllmExtendsThem) {
  with_logprobs(0);
  with_prompt_logprobs();
  line_.prompt_logprobs = 2;
  line_.token_ids = line_.tokens_as_ids = true;
  EXPECT_EQ(body()["choices"][0], json::parse(R"({"index": 0, "text": "h", "token_ids": [104, 257],
    "logprobs": {"tokens": ["token_id:104", "token_id:257"], "token_logprobs": [-0.5, -2.0],
      "top_logprobs": [{"token_id:104": -0.5}, {"token_id:257": -2.0}], "text_offset": [0, 1]},
    "finish_reason": "stop", "prompt_token_ids": [256, 97, 98], "prompt_logprobs": [null,
      {"97": {"logprob": -4.0, "rank": null, "decoded_token": "a"},
       "99": {"logprob": -0.125, "rank": 1, "decoded_token": "c"},
       "100": {"logprob": -3.0, "rank": 2, "decoded_token": "d"}},
      {"98": {"logprob": -0.75, "rank": 1, "decoded_token": "b"},
       "101": {"logprob": -1.0, "rank": 2, "decoded_token": "e"}}]})"));
}

TEST_F(AnswerShapes, Chat) {
  with_logprobs(2);
  line_.chat = true;
  EXPECT_EQ(body(),
            json::parse(R"({"id": "chatcmpl-4", "object": "chat.completion", "created": 0, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "h", "refusal": null},
      "logprobs": {"content": [
        {"token": "h", "logprob": -0.5, "bytes": [104], "top_logprobs": [
          {"token": "h", "logprob": -0.5, "bytes": [104]}, {"token": "i", "logprob": -1.0, "bytes": [105]}]},
        {"token": "", "logprob": -2.0, "bytes": [], "top_logprobs": [
          {"token": "x", "logprob": -0.25, "bytes": [120]},
          {"token": "\ufffd", "logprob": -1.5, "bytes": [195]}]}], "refusal": null},
      "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}})"));
  line_.prompt_logprobs = 1;
  line_.token_ids = true;
  with_prompt_logprobs();
  EXPECT_EQ(body()["prompt_token_ids"], json({256, 97, 98}));
  EXPECT_EQ(body()["prompt_logprobs"].size(), 3u);
  line_.openai = false;
  EXPECT_EQ(plain()["text"], "h") << "a plain line with messages has a plain answer";
}

TEST_F(AnswerShapes, WithoutATokenizerThereAreIds) {
  with_logprobs(1);
  with_samples();
  line_.echo = true;
  const json own = json::parse(generate_result(line_, request_, completion_, nullptr));
  EXPECT_EQ(own["choices"][1]["tokens"], json({256, 97, 98, 111, 107}));
  EXPECT_FALSE(own["choices"][1].contains("text"));
  line_.openai = line_.tokens_as_ids = true;
  const json body = json::parse(generate_result(line_, request_, completion_, nullptr))["response"]["body"];
  EXPECT_EQ(body["choices"][1]["token_ids"], json({111, 107}));
  EXPECT_EQ(body["choices"][1]["text"], "");
  EXPECT_EQ(body["choices"][0]["logprobs"]["tokens"][3], "token_id:104");
}

TEST_F(AnswerShapes, ScoreWithAlternatives) {
  request_.logprobs = true;
  request_.top_logprobs = 1;
  completion_.logprobs = {-0.5f, -1.5f};
  completion_.top_logprobs = {{{97, -0.5f}}, {{99, -0.25f}}};
  const auto result = [&] {
    json scored = json::parse(score_result(line_, request_, completion_));
    scored.erase("perplexity");
    return scored;
  };
  EXPECT_EQ(result(), json::parse(R"({"id": "c", "tokens": [256, 97, 98], "logprobs": [null, -0.5, -1.5],
    "top_logprobs": [null, [[97, -0.5]], [[99, -0.25]]], "sum_logprob": -2.0})"));
  line_.continuation = true;
  request_.score_from = 2;
  completion_.logprobs = {-1.5f};
  completion_.top_logprobs = {{{99, -0.25f}}};
  completion_.is_greedy = false;
  EXPECT_EQ(result(), json::parse(R"({"id": "c", "tokens": [98], "logprobs": [-1.5],
    "top_logprobs": [[[99, -0.25]]], "sum_logprob": -1.5, "is_greedy": false})"));
}

}  // namespace
}  // namespace ptrt
