// Request lines: defaults, both forms, and every error; a bad line does not affect others.
#include <gtest/gtest.h>

#include "kernels/base/error.h"
#include "launch/requests/request_parser.h"
#include "launch/small_model.h"

namespace ptrt {
namespace {

RequestFile parse(const std::string& text, Task task = Task::generate, std::int64_t kv_tokens = 1000) {
  const ModelConfig config = small_config();
  return parse_requests(text, "r.jsonl", task, config, small_tokenizer(), {kv_tokens});
}

TEST(RequestFile, Defaults) {
  const RequestFile file = parse(R"({"prompt": "ab"})");
  ASSERT_EQ(file.requests.size(), 1u);
  const Request& r = file.requests[0];
  EXPECT_EQ(file.lines[0].id, "0");
  EXPECT_EQ(r.tokens, (std::vector<std::int32_t>{256, 'a', 'b'})) << "bos stands before a prompt";
  EXPECT_EQ(r.max_tokens, 16);
  EXPECT_EQ(r.temperature, 0);
  EXPECT_EQ(r.top_k, 0);
  EXPECT_EQ(r.top_p, 1);
  EXPECT_FALSE(r.logprobs);
  EXPECT_TRUE(r.stop.empty());
}

TEST(RequestFile, TokensAreTakenAsTheyAre) {
  const RequestFile file =
      parse(R"({"id": "x", "tokens": [5, 258], "stop": "q", "seed": 7, "logprobs": true})");
  ASSERT_EQ(file.requests.size(), 1u);
  EXPECT_EQ(file.requests[0].tokens, (std::vector<std::int32_t>{5, 258}));
  EXPECT_EQ(file.requests[0].stop, (std::vector<std::string>{"q"}));
  EXPECT_EQ(file.requests[0].seed, 7u);
  EXPECT_TRUE(file.requests[0].logprobs);
}

TEST(RequestFile, SeedComesFromTheIdWhenNotGiven) {
  const RequestFile file = parse("{\"id\":\"a\",\"prompt\":\"x\"}\n{\"id\":\"b\",\"prompt\":\"x\"}\n");
  EXPECT_NE(file.requests[0].seed, file.requests[1].seed);
  EXPECT_EQ(file.requests[0].seed, parse("{\"id\":\"a\",\"prompt\":\"y\"}").requests[0].seed);
}

TEST(RequestFile, OpenAiLine) {
  const RequestFile file =
      parse(R"({"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {"model": "m", )"
            R"("prompt": "ab", "max_tokens": 3, "temperature": null, "logprobs": 1, "stop": null}})");
  ASSERT_EQ(file.requests.size(), 1u) << file.lines[0].error.message;
  EXPECT_TRUE(file.lines[0].openai);
  EXPECT_EQ(file.lines[0].id, "c");
  EXPECT_EQ(file.lines[0].model, "m");
  EXPECT_EQ(file.requests[0].max_tokens, 3);
  EXPECT_TRUE(file.requests[0].logprobs);
}

struct Bad {
  const char* line;
  const char* code;
  const char* names;  // what the message must name
};

class BadLines : public testing::TestWithParam<Bad> {};

TEST_P(BadLines, BecomeErrorsAndDoNotAffectOthers) {
  const Bad bad = GetParam();
  const std::string good = R"({"id": "good", "prompt": "a"})";
  const RequestFile file = parse(good + "\n" + bad.line + "\n" + R"({"prompt": "z"})");
  ASSERT_EQ(file.lines.size(), 3u);
  EXPECT_EQ(file.requests.size(), 2u);
  EXPECT_EQ(file.lines[0].request, 0);
  EXPECT_EQ(file.lines[2].request, 1);
  EXPECT_EQ(file.lines[2].id, "2");
  EXPECT_EQ(file.lines[1].request, -1);
  EXPECT_EQ(file.lines[1].error.code, bad.code) << file.lines[1].error.message;
  EXPECT_NE(file.lines[1].error.message.find(bad.names), std::string::npos) << file.lines[1].error.message;
}

INSTANTIATE_TEST_SUITE_P(
    Table, BadLines,
    testing::Values(
        Bad{"{\"prompt\": ", "invalid_json", "line 2"}, Bad{"[1, 2]", "invalid_json", "array"},
        Bad{"{}", "invalid_request", "prompt"}, Bad{R"({"prompt": 5})", "invalid_request", "prompt"},
        Bad{R"({"prompt": "a", "tokens": [1]})", "invalid_request", "both"},
        Bad{R"({"prompt": ["a"]})", "invalid_request", "prompt"},
        Bad{R"({"prompt": "a", "max_tokens": 4611686018427387904})", "context_length_exceeded", "64"},
        Bad{R"({"tokens": []})", "invalid_request", "tokens"},
        Bad{R"({"tokens": [1.5]})", "invalid_request", "1.5"},
        Bad{R"({"tokens": "abc"})", "invalid_request", "tokens"},
        Bad{R"({"tokens": [1, 259]})", "token_out_of_range", "259"},
        Bad{R"({"tokens": [-1]})", "token_out_of_range", "-1"},
        Bad{R"({"tokens": [18446744073709551615]})", "token_out_of_range", "18446744073709551615"},
        Bad{R"({"id": 3, "prompt": "a"})", "invalid_request", "id"},
        Bad{R"({"id": "good", "prompt": "a"})", "duplicate_id", "good"},
        Bad{R"({"prompt": "a", "max_tokens": 0})", "invalid_request", "max_tokens"},
        Bad{R"({"prompt": "a", "max_tokens": "9"})", "invalid_request", "max_tokens"},
        Bad{R"({"prompt": "a", "max_tokens": 1.5})", "invalid_request", "max_tokens"},
        Bad{R"({"prompt": "a", "max_tokens": 99999999999999999999})", "invalid_request", "max_tokens"},
        Bad{R"({"prompt": "a", "temperature": -1})", "invalid_request", "temperature"},
        Bad{R"({"prompt": "a", "temperature": true})", "invalid_request", "temperature"},
        Bad{R"({"prompt": "a", "temperature": 1e300})", "invalid_request", "temperature"},
        Bad{R"({"prompt": "a", "top_k": -2})", "invalid_request", "top_k"},
        Bad{R"({"prompt": "a", "top_p": 0})", "invalid_request", "top_p"},
        Bad{R"({"prompt": "a", "top_p": 1.1})", "invalid_request", "top_p"},
        Bad{R"({"prompt": "a", "top_p": 1e-300})", "invalid_request", "top_p"},
        Bad{R"({"prompt": "a", "seed": "x"})", "invalid_request", "seed"},
        Bad{R"({"prompt": "a", "stop": 3})", "invalid_request", "stop"},
        Bad{R"({"prompt": "a", "stop": [""]})", "invalid_request", "stop"},
        Bad{R"({"prompt": "a", "logprobs": 21})", "invalid_request", "logprobs"},
        Bad{R"({"prompt": "a", "max_tokens": 63})", "context_length_exceeded", "64"},
        Bad{R"({"custom_id": "c", "method": "POST", "url": "/v1/embeddings", "body": {"prompt": "a"}})",
            "invalid_url", "/v1/embeddings"},
        Bad{R"({"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": {"prompt": "a"}})",
            "unsupported_field", "'prompt'"},
        Bad{R"({"messages": [{"role": "user"}]})", "unsupported", "messages"},
        Bad{R"({"custom_id": "c", "method": "GET", "url": "/v1/completions", "body": {"prompt": "a"}})",
            "invalid_request", "GET"},
        Bad{R"({"custom_id": "c", "method": "POST", "url": "/v1/completions"})", "invalid_request", "body"},
        Bad{R"({"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a", "n": 2}})",
            "invalid_request", "'n'"},
        Bad{R"({"method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}})", "invalid_request",
            "custom_id"}));

// All of these the JSON library takes in silence, or dies of.
TEST(RequestFile, JsonIsStrict) {
  const auto error = [](const std::string& line) { return parse("{}\n" + line + "\n").lines.at(1).error; };
  const auto nested = [](std::size_t deep) {
    return R"({"tokens": [1], "documents": )" + std::string(deep, '[') + std::string(deep, ']') + "}";
  };
  EXPECT_EQ(error(nested(255)).code, "unsupported_field") << "a field of chats";
  for (const std::size_t deep : {std::size_t{256}, std::size_t{100000}}) {
    EXPECT_EQ(error(nested(deep)).code, "invalid_json");
    EXPECT_EQ(error(nested(deep)).message, "line 2 has values nested more than 256 deep");
  }
  const std::string good = R"({"tokens": [1]})";
  EXPECT_EQ(error(good).code, "");
  for (const std::string& bytes : {std::string("\0", 1), std::string("\0, x", 4)}) {
    EXPECT_EQ(error(good + bytes).code, "invalid_json");
    EXPECT_EQ(error(good + bytes).message, "line 2 has a NUL byte");
  }
  const std::string mark = "\xEF\xBB\xBF";
  EXPECT_NE(error(mark + good).message.find("byte order mark"), std::string::npos);
  EXPECT_EQ(parse(mark + good).lines[0].error.message, "");
  EXPECT_EQ(parse(mark + mark + good).lines[0].error.code, "invalid_json");

  const std::string tail = R"(, "body": {"prompt": "a"}})", head = R"({"custom_id": "c", "method": "POST", )";
  const std::pair<std::string, const char*> twice[] = {
      {R"({"tokens": [1], "seed": 1, "seed": 1})", "'seed'"},
      {R"({"tokens": [1], "s\u0065ed": 1, "seed": null})", "'seed'"},
      {R"({"tokens": [1], "logit_bias": {"1": 1, "2": 1, "1": 2}})", "'1'"},
      {head + R"("url": "/v1/completions", "url": "/v1/completions")" + tail, "'url'"},
      {head + R"("url": "/v1/completions", "body": {"prompt": "a", "prompt": "b"}})", "'prompt'"}};
  for (const auto& [line, name] : twice) {
    EXPECT_EQ(error(line).code, "invalid_request") << line;
    EXPECT_NE(error(line).message.find(name), std::string::npos) << error(line).message;
    EXPECT_NE(error(line).message.find("twice"), std::string::npos) << error(line).message;
  }
  EXPECT_EQ(parse(twice[4].first).lines[0].id, "c") << "answered in its form";
  EXPECT_TRUE(parse(twice[4].first).lines[0].openai);
}

TEST(RequestFile, CanNeverFitTheKvCache) {
  const RequestFile file =
      parse("{\"prompt\": \"abc\", \"max_tokens\": 14}\n{\"prompt\": \"abc\", \"max_tokens\": 13}",
            Task::generate, 16);
  EXPECT_EQ(file.lines[0].error.code, "kv_cache_exceeded");
  EXPECT_EQ(file.lines[1].request, 0) << "4 + 13 - 1 tokens fit 16";
}

TEST(RequestFile, ScoringIgnoresWhatOnlyGenerationKnows) {
  const RequestFile file =
      parse(R"({"prompt": "ab", "max_tokens": -4, "temperature": "hot", "stop": 1})", Task::score);
  ASSERT_EQ(file.requests.size(), 1u) << file.lines[0].error.message;
  EXPECT_EQ(file.requests[0].max_tokens, 0);
}

TEST(RequestFile, AContinuationIsWhatExceedsTheContext) {
  const RequestFile file = parse(
      "{\"context\": \"ab\", \"continuation\": \"c\\u00fc\"}\n"
      "{\"context\": [7, 8], \"continuation\": [9]}\n"
      "{\"context\": \"\", \"continuation\": \"a\"}\n"
      "{\"prompt\": \"ab\"}\n",
      Task::score);
  ASSERT_EQ(file.requests.size(), 4u) << file.lines[0].error.message << file.lines[1].error.message;
  EXPECT_EQ(file.requests[0].tokens, (std::vector<std::int32_t>{256, 'a', 'b', 'c', 0xC3, 0xBC}));
  EXPECT_EQ(file.requests[0].score_from, 3);
  EXPECT_EQ(file.requests[1].tokens, (std::vector<std::int32_t>{7, 8, 9})) << "no bos before token ids";
  EXPECT_EQ(file.requests[1].score_from, 2);
  EXPECT_EQ(file.requests[2].tokens, (std::vector<std::int32_t>{256, 'a'}));
  EXPECT_EQ(file.requests[2].score_from, 1);
  EXPECT_EQ(file.requests[3].score_from, 1);
  for (std::size_t i = 0; i < 4; i++) EXPECT_EQ(file.lines[i].continuation, i < 3);
}

TEST(RequestFile, BadContinuations) {
  const std::pair<const char*, const char*> bad[] = {
      {R"({"context": "a"})", "'continuation' is not given"},
      {R"({"continuation": "a"})", "'context' is not given"},
      {R"({"context": "a", "continuation": "b", "prompt": "c"})", "either"},
      {R"({"context": "a", "continuation": "b", "tokens": [1]})", "either"},
      {R"({"context": "a", "continuation": [1]})", "found string and array"},
      {R"({"context": [1], "continuation": "a"})", "found array and string"},
      {R"({"context": 1, "continuation": 2})", "found number and number"},
      {R"({"context": "a", "continuation": ""})", "adds no token"},
      {R"({"context": [], "continuation": [1]})", "'context' is empty"},
      {R"({"context": [1], "continuation": []})", "'continuation' is empty"},
      {R"({"context": [1], "continuation": [259]})", "'continuation' at 0"},
      {R"({"context": [1, "a"], "continuation": [2]})", "'context' must be an array of integers"}};
  for (const auto& [text, names] : bad) {
    const RequestFile file = parse(text, Task::score);
    EXPECT_TRUE(file.requests.empty()) << text;
    EXPECT_NE(file.lines[0].error.message.find(names), std::string::npos) << file.lines[0].error.message;
  }
  const std::string longer(64, 'x');
  EXPECT_EQ(parse(R"({"context": "a", "continuation": ")" + longer + "\"}", Task::score).lines[0].error.code,
            "context_length_exceeded");
  EXPECT_EQ(parse(R"({"context": "a", "continuation": "b"})").lines[0].error.code, "unsupported_field")
      << "only of score";
}

TEST(RequestFile, AContextNeedsATokenOrABos) {
  ModelConfig config = small_config();
  config.bos_token_id.reset();
  const RequestFile file = parse_requests(R"({"context": "", "continuation": "a"})", "r", Task::score, config,
                                          small_tokenizer(), {100});
  EXPECT_NE(file.lines[0].error.message.find("'context' is empty and the model has no bos"),
            std::string::npos);
}

TEST(RequestFile, WithoutATokenizer) {
  const ModelConfig config = small_config();
  const RequestFile file =
      parse_requests("{\"prompt\": \"a\"}\n{\"tokens\": [1], \"stop\": \"a\"}\n{\"tokens\": [1]}\n", "r",
                     Task::generate, config, make_tokenizer({}, config), {100});
  EXPECT_EQ(file.lines[0].error.code, "no_tokenizer");
  EXPECT_EQ(file.lines[1].error.code, "no_tokenizer");
  EXPECT_EQ(file.lines[2].request, 0);
}

TEST(RequestFile, ABlankLineHasANumberOnly) {
  const RequestFile file = parse("{\"prompt\": \"a\"}\n \t\r\n{\"prompt\": \"b\"}");
  ASSERT_EQ(file.requests.size(), 2u);
  EXPECT_EQ(file.lines[1].request, -1);
  EXPECT_EQ(file.lines[1].error.code, "");
  EXPECT_EQ(file.lines[2].id, "2");
}

TEST(RequestFile, AnEmptyFileIsBadInput) {
  EXPECT_THROW(parse(""), Error);
  EXPECT_THROW(parse("\n \n"), Error);
}

}  // namespace
}  // namespace ptrt
