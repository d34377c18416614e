#include "launch/jsonl/result_lines.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "launch/jsonl/result_timings.h"
#include "launch/small_model.h"
#include "model_io/text/unicode.h"

namespace ptrt {
namespace {

using nlohmann::json;

Completion completion_of(const std::string& text) {
  Completion completion;
  completion.tokens = {'h', 'i', 257};
  completion.text = text;
  completion.finish_reason = FinishReason::stop;
  return completion;
}

TEST(ResultLines, Generate) {
  Request request;
  request.line = 4;
  request.tokens = {256, 'a'};
  RequestLine line;
  line.id = "x\"y";
  const std::string text = generate_result(line, request, completion_of("h\xff"), &bytes());
  EXPECT_EQ(
      text,
      "{\"id\":\"x\\\"y\",\"text\":\"h\xEF\xBF\xBD\",\"tokens\":[104,105,257],\"finish_reason\":\"stop\","
      "\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":3}}");
  EXPECT_FALSE(json::parse(generate_result(line, request, completion_of(""), nullptr)).contains("text"));
}

// Byte for byte as a tree of JSON values is written.
TEST(ResultLines, PlainLinesAreAsJsonWritesThem) {
  for (const std::string text :
       {"", "a b~", "q\"q", "b\\b", "tab\t", "\x01\x1f\x7f", "\xC3\xA4\xE2\x82\xAC", "\xFF\xC3("})
    for (const bool logprobs : {false, true}) {
      Request request;
      request.tokens = {256, 'a'};
      request.logprobs = logprobs;
      RequestLine line;
      line.id = text;
      Completion completion = completion_of(text);
      if (logprobs) completion.logprobs = {-0.1f, -3e-9f, -12.345678f, 0.0f};
      nlohmann::ordered_json expected{
          {"id", text}, {"text", sanitize_utf8(text)}, {"tokens", completion.tokens}};
      expected["finish_reason"] = "stop";
      expected["usage"] = {{"prompt_tokens", 2}, {"completion_tokens", 3}};
      if (logprobs) expected["logprobs"] = completion.logprobs;
      EXPECT_EQ(generate_result(line, request, completion, &bytes()),
                expected.dump(-1, ' ', false, json::error_handler_t::replace));
    }
}

TEST(ResultLines, LogprobsKeepTheirBits) {
  Request request;
  request.logprobs = true;
  Completion completion = completion_of("hi");
  completion.logprobs = {-0.1f, -1e-7f, -12.345678f};
  const json result = json::parse(generate_result({}, request, completion, &bytes()));
  for (std::size_t i = 0; i < 3; i++) EXPECT_EQ(result["logprobs"][i].get<float>(), completion.logprobs[i]);
}

TEST(ResultLines, OpenAi) {
  Request request;
  request.line = 4;
  request.tokens = {256, 'a'};
  RequestLine line;
  line.id = "c";
  line.openai = true;
  line.model = "m";
  const json result = json::parse(generate_result(line, request, completion_of("hi"), &bytes()));
  EXPECT_EQ(result["custom_id"], "c");
  EXPECT_TRUE(result["error"].is_null());
  EXPECT_EQ(result["response"]["status_code"], 200);
  const json& body = result["response"]["body"];
  EXPECT_EQ(body["object"], "text_completion");
  EXPECT_EQ(body["created"], 0);
  EXPECT_EQ(body["model"], "m");
  EXPECT_EQ(body["choices"][0]["text"], "hi");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(body["usage"]["total_tokens"], 5);

  line.error = {"invalid_url", "no"};
  const json error = json::parse(error_result(line, 4));
  EXPECT_EQ(error["response"]["status_code"], 400);
  EXPECT_EQ(error["error"]["code"], "invalid_url");
}

// As Python's len() counts: the offset of a token is that of the character its first byte belongs to.
TEST(ResultLines, OffsetsCountCharacters) {
  Request request;
  request.logprobs = true;
  RequestLine line;
  line.openai = true;
  const auto offsets = [&](const std::vector<std::int32_t>& tokens) {
    Completion completion;
    completion.tokens = tokens;
    for (const std::int32_t id : tokens) completion.text += bytes().token_bytes(id);
    completion.logprobs.resize(tokens.size());
    const json result = json::parse(generate_result(line, request, completion, &bytes()));
    return result["response"]["body"]["choices"][0]["logprobs"]["text_offset"].get<std::vector<int>>();
  };
  using Ints = std::vector<int>;
  EXPECT_EQ(offsets({'c', 0xC3, 0xA9, '!'}), (Ints{0, 1, 1, 2})) << "two tokens of one character";
  EXPECT_EQ(offsets({0xF0, 0x9F, 0x8E, 0x89, 'o', 'k'}), (Ints{0, 0, 0, 0, 1, 2}));
  EXPECT_EQ(offsets({0xE6, 0x97, 'x', 0xFF, 0x80, 'y'}), (Ints{0, 0, 1, 2, 3, 4})) << "each U+FFFD counts";
  EXPECT_EQ(offsets({0xE6, 257, 0x97, 0xA5, 257, 'x', 257}), (Ints{0, 0, 0, 0, 1, 1, 2}))
      << "special tokens have no text";
  EXPECT_EQ(offsets({0xC3}), (Ints{0})) << "what is not complete at the end";
  EXPECT_EQ(offsets({}), Ints{});
}

// Tokens of several characters.
class WordTokenizer final : public Tokenizer {
 public:
  std::vector<std::int32_t> encode(std::string_view) const override { return {}; }
  std::string token_bytes(std::int32_t id) const override {
    const char* const pieces[] = {"café", " 日本", " 🎉", "ok"};
    return pieces[id];
  }
};

TEST(ResultLines, OffsetsOfLongerTokens) {
  Request request;
  request.logprobs = true;
  RequestLine line;
  line.openai = true;
  Completion completion;
  completion.tokens = {0, 1, 2, 3};
  completion.text = "café 日本 🎉ok";
  completion.logprobs.resize(4);
  const WordTokenizer words;
  const json result = json::parse(generate_result(line, request, completion, &words));
  const json& logprobs = result["response"]["body"]["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["text_offset"], json({0, 4, 7, 9}));
  EXPECT_EQ(logprobs["tokens"], json({"café", " 日本", " 🎉", "ok"}));
}

TEST(ResultLines, LogitsThatAreNotFinite) {
  Request request;
  request.line = 4;
  request.tokens = {1, 2, 3};
  RequestLine line;
  line.id = "c";
  Completion completion;
  completion.request = 0;
  completion.not_finite_at = 2;
  for (const json& result : {json::parse(generate_result(line, request, completion, &bytes())),
                             json::parse(score_result(line, request, completion))}) {
    EXPECT_EQ(result.size(), 2u);
    EXPECT_EQ(result["id"], "c");
    EXPECT_EQ(result["error"]["code"], "non_finite_logits");
    EXPECT_NE(result["error"]["message"].get<std::string>().find("token 2"), std::string::npos);
  }
  line.openai = true;
  const json result = json::parse(generate_result(line, request, completion, &bytes()));
  EXPECT_EQ(result["id"], "batch_req_4");
  EXPECT_EQ(result["response"]["status_code"], 500);
  EXPECT_EQ(result["response"]["body"]["error"]["type"], "server_error");
  EXPECT_EQ(result["error"]["code"], "non_finite_logits");
}

TEST(ResultLines, Score) {
  Request request;
  request.tokens = {1, 2, 3};
  Completion completion;
  completion.logprobs = {-1.0f, -3.0f};
  const json result = json::parse(score_result({}, request, completion));
  EXPECT_TRUE(result["logprobs"][0].is_null());
  EXPECT_EQ(result["logprobs"].size(), 3u);
  EXPECT_DOUBLE_EQ(result["sum_logprob"], -4);
  EXPECT_DOUBLE_EQ(result["perplexity"], std::exp(2.0));
  request.tokens = {1};
  completion.logprobs = {};
  const json one = json::parse(score_result({}, request, completion));
  EXPECT_TRUE(one["perplexity"].is_null());
  EXPECT_EQ(one["sum_logprob"], 0);
}

TEST(ResultLines, ScoreOfAContinuation) {
  Request request;
  request.tokens = {1, 2, 3, 4};
  request.score_from = 2;
  RequestLine line;
  line.id = "c";
  line.continuation = true;
  Completion completion;
  completion.logprobs = {-1.0f, -0.5f};
  completion.is_greedy = false;
  EXPECT_EQ(score_result(line, request, completion),
            R"({"id":"c","tokens":[3,4],"logprobs":[-1.0,-0.5],"sum_logprob":-1.5,"is_greedy":false})");
}

TEST(ResultLines, ErrorsOfTheHost) {
  RequestLine line;
  line.id = "code\":\"kv_cache_exceeded\"";
  const auto result = [&](const char* code, bool openai) {
    line.openai = openai;
    line.error = {code, "no Python"};
    return error_result(line, 0);
  };
  for (const bool openai : {false, true}) {
    for (const char* code :
         {"chat_template_unavailable", "structured_output_unavailable", "kv_cache_exceeded"})
      EXPECT_TRUE(may_have_result(result(code, openai))) << code;
    for (const char* code : {"chat_template_error", "invalid_request", "no_chat_template"})
      EXPECT_FALSE(may_have_result(result(code, openai))) << code;
    EXPECT_TRUE(is_kv_cache_exceeded(result("kv_cache_exceeded", openai)));
    EXPECT_FALSE(is_kv_cache_exceeded(result("chat_template_unavailable", openai)));
  }
  EXPECT_FALSE(may_have_result(R"({"id":"0","text":"\"code\":\"kv_cache_exceeded\""})"));
  const json response = json::parse(result("chat_template_unavailable", true))["response"];
  EXPECT_EQ(response["status_code"], 500);
  EXPECT_EQ(response["body"]["error"]["type"], "server_error");
  EXPECT_EQ(json::parse(result("chat_template_error", true))["response"]["status_code"], 400);
}

// --timings: at the end of the object, or of the body.
TEST(ResultLines, Timings) {
  Completion completion = completion_of("hi");
  completion.admitted_s = 2.5;
  completion.first_token_s = 2.75;
  completion.finish_s = 3.75;
  completion.reused_tokens = 16;
  const std::string timings = timings_of(completion, -0.25);
  EXPECT_EQ(timings, R"({"queue_ms":2750.000,"ttft_ms":3000.000,"tpot_ms":500.000,"cached_tokens":16})");
  Request request;
  request.tokens = {256, 'a'};
  RequestLine line;
  line.id = "x";
  for (const bool openai : {false, true}) {
    line.openai = openai;
    const std::string plain = generate_result(line, request, completion, &bytes());
    json expected = json::parse(plain);
    (openai ? expected["response"]["body"] : expected)["timings"] = json::parse(timings);
    EXPECT_EQ(json::parse(with_timings(plain, openai, timings)), expected);
  }
  // `score` has one form for all lines.
  Completion scored;
  scored.logprobs = {-1.0f};
  EXPECT_TRUE(is_openai_answer(line, Task::generate));
  const std::string score =
      with_timings(score_result(line, request, scored), is_openai_answer(line, Task::score), timings);
  EXPECT_EQ(json::parse(score)["timings"], json::parse(timings));
  completion.tokens.resize(1);
  EXPECT_TRUE(json::parse(timings_of(completion, 0))["tpot_ms"].is_null());
}

}  // namespace
}  // namespace ptrt
