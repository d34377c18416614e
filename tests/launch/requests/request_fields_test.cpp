// Every field that a request line may have: what it sets, which values are refused, and that each is tested here.
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "launch/requests/request_parser.h"
#include "launch/small_model.h"

namespace ptrt {
namespace {

using nlohmann::json;
using Ids = std::vector<std::int32_t>;

struct Parsed {
  RequestLine line;
  Request request;
};

Parsed parse(const json& object, Task task = Task::generate) {
  static const ModelConfig config = small_config();
  RequestParser parser(task, config, small_tokenizer(), {1000});
  Parsed parsed;
  parser.parse(object.dump(), 0, parsed.line, parsed.request);
  return parsed;
}

json plain(json fields) {
  if (!fields.contains("tokens")) fields["prompt"] = fields.value("prompt", json("ab"));
  return fields;
}

json completions(json fields) {
  fields["prompt"] = fields.value("prompt", json("ab"));
  return {{"custom_id", "c"}, {"method", "POST"}, {"url", "/v1/completions"}, {"body", fields}};
}

// In both forms alike, unless it says otherwise.
struct Good {
  json fields;
  std::function<bool(const Parsed&)> check;
  FieldForms forms = kPrompts;
};

const std::map<std::string, std::vector<Good>>& good_values() {
  static const std::map<std::string, std::vector<Good>> all = {
      {"id", {{{{"id", "x"}}, [](const Parsed& p) { return p.line.id == "x"; }, kPlain}}},
      {"model", {{{{"model", "m"}}, [](const Parsed& p) { return p.line.model == "m"; }, kCompletions}}},
      {"prompt",
       {{{{"prompt", "xy"}},
         [](const Parsed& p) {
           return p.request.tokens == Ids{256, 'x', 'y'};
         }},
        {{{"prompt", {7, 8}}},
         [](const Parsed& p) {
           return p.request.tokens == Ids{7, 8};
         },
         kCompletions},
        {{{"prompt", {{7, 8}}}},
         [](const Parsed& p) {
           return p.request.tokens == Ids{7, 8};
         },
         kCompletions},
        {{{"prompt", {"xy"}}},
         [](const Parsed& p) {
           return p.request.tokens == Ids{256, 'x', 'y'};
         },
         kCompletions}}},
      {"tokens",
       {{{{"tokens", {7, 8}}},
         [](const Parsed& p) {
           return p.request.tokens == Ids{7, 8};
         },
         kPlain}}},
      {"add_special_tokens",
       {{{{"add_special_tokens", false}},
         [](const Parsed& p) {
           return p.request.tokens == Ids{'a', 'b'};
         }},
        {{{"add_special_tokens", true}},
         [](const Parsed& p) {
           return p.request.tokens == Ids{256, 'a', 'b'};
         }}}},
      {"truncate_prompt_tokens",
       {{{{"prompt", "abcde"}, {"truncate_prompt_tokens", 2}},
         [](const Parsed& p) {
           return p.request.tokens == Ids{'d', 'e'};
         }},
        {{{"prompt", "abcde"}, {"truncate_prompt_tokens", 60}},
         [](const Parsed& p) { return p.request.tokens.size() == 6; }},
        {{{"prompt", std::string(100, 'x') + "y"}, {"truncate_prompt_tokens", -1}, {"max_tokens", 4}},
         [](const Parsed& p) { return p.request.tokens.size() == 60 && p.request.tokens.back() == 'y'; }}}},
      {"truncation_side",
       {{{{"prompt", "abcde"}, {"truncate_prompt_tokens", 2}, {"truncation_side", "right"}},
         [](const Parsed& p) {
           return p.request.tokens == Ids{256, 'a'};
         }}}},
      {"max_tokens",
       {{{{"max_tokens", 3}}, [](const Parsed& p) { return p.request.max_tokens == 3; }},
        {{{"max_tokens", nullptr}}, [](const Parsed& p) { return p.request.max_tokens == 16; }},
        {{{"max_tokens", 0}, {"echo", true}}, [](const Parsed& p) { return p.request.max_tokens == 0; }},
        {{{"max_tokens", 0}, {"prompt_logprobs", 1}},
         [](const Parsed& p) { return p.request.max_tokens == 0; }}}},
      {"max_completion_tokens",
       {{{{"max_completion_tokens", 3}}, [](const Parsed& p) { return p.request.max_tokens == 3; }},
        {{{"max_completion_tokens", 3}, {"max_tokens", 3}},
         [](const Parsed& p) { return p.request.max_tokens == 3; }}}},
      {"temperature",
       {{{{"temperature", 0.5}}, [](const Parsed& p) { return p.request.temperature == 0.5f; }}}},
      {"top_k",
       {{{{"top_k", 5}}, [](const Parsed& p) { return p.request.top_k == 5; }},
        {{{"top_k", -1}}, [](const Parsed& p) { return p.request.top_k == 0; }}}},
      {"top_p", {{{{"top_p", 0.5}}, [](const Parsed& p) { return p.request.top_p == 0.5f; }}}},
      {"min_p", {{{{"min_p", 0.25}}, [](const Parsed& p) { return p.request.min_p == 0.25f; }}}},
      {"seed",
       {{{{"seed", 18446744073709551615u}}, [](const Parsed& p) { return p.request.seed == UINT64_MAX; }},
        {{{"seed", -2}}, [](const Parsed& p) { return p.request.seed == UINT64_MAX - 1; }}}},
      {"n",
       {{{{"n", 3}, {"temperature", 1}}, [](const Parsed& p) { return p.request.samples == 3; }},
        {{{"n", 1}}, [](const Parsed& p) { return p.request.samples == 1; }}}},
      {"best_of",
       {{{{"n", 3}, {"best_of", 3}, {"temperature", 1}},
         [](const Parsed& p) { return p.request.samples == 3; }},
        {{{"best_of", 1}}, [](const Parsed& p) { return p.request.samples == 1; }}}},
      {"repetition_penalty",
       {{{{"repetition_penalty", 1.5}},
         [](const Parsed& p) { return p.request.rules.repetition_penalty == 1.5f; }}}},
      {"presence_penalty",
       {{{{"presence_penalty", -2}},
         [](const Parsed& p) { return p.request.rules.presence_penalty == -2; }}}},
      {"frequency_penalty",
       {{{{"frequency_penalty", 0.5}},
         [](const Parsed& p) { return p.request.rules.frequency_penalty == 0.5f; }}}},
      {"logit_bias",
       {{{{"logit_bias", {{"258", 500}, {"7", -0.5}, {"31", -101}}}},
         [](const Parsed& p) {
           return p.request.rules.bias == std::vector<TokenBias>{{7, -0.5f}, {31, -100}, {258, 100}};
         }},
        {{{"logit_bias", json::object()}}, [](const Parsed& p) { return p.request.rules.bias.empty(); }}}},
      {"allowed_token_ids",
       {{{{"allowed_token_ids", {9, 3, 9}}},
         [](const Parsed& p) {
           return p.request.rules.allowed == Ids{3, 9};
         }}}},
      {"bad_words",
       {{{{"bad_words", {" x", "yz"}}},
         [](const Parsed& p) {
           // A space before a word of the bytes is one more token, so there is no second form.
           return p.request.rules.bad_words == std::vector<Ids>{{'x'}, {'y', 'z'}};
         }},
        {{{"bad_words", json::array()}}, [](const Parsed& p) { return p.request.rules.bad_words.empty(); }}}},
      {"min_tokens",
       {{{{"min_tokens", 16}}, [](const Parsed& p) { return p.request.rules.min_tokens == 16; }}}},
      {"stop",
       {{{{"stop", "x"}}, [](const Parsed& p) { return p.request.stop == std::vector<std::string>{"x"}; }},
        {{{"stop", {"x", "yz"}}},
         [](const Parsed& p) {
           return p.request.stop == std::vector<std::string>{"x", "yz"};
         }},
        {{{"stop", json::array()}}, [](const Parsed& p) { return p.request.stop.empty(); }}}},
      {"stop_token_ids",
       {{{{"stop_token_ids", {9, 3, 9}}},
         [](const Parsed& p) {
           return p.request.stop_tokens == Ids{3, 9};
         }},
        {{{"stop_token_ids", json::array()}},
         [](const Parsed& p) { return p.request.stop_tokens.empty(); }}}},
      {"include_stop_str_in_output",
       {{{{"include_stop_str_in_output", true}}, [](const Parsed& p) { return p.request.include_stop; }}}},
      {"ignore_eos", {{{{"ignore_eos", true}}, [](const Parsed& p) { return p.request.ignore_eos; }}}},
      {"logprobs",
       {{{{"logprobs", true}},
         [](const Parsed& p) { return p.request.logprobs && p.request.top_logprobs == 0; },
         kPlain},
        {{{"logprobs", false}}, [](const Parsed& p) { return !p.request.logprobs; }, kPlain},
        {{{"logprobs", 0}},
         [](const Parsed& p) { return p.request.logprobs && p.request.top_logprobs == 0; }},
        {{{"logprobs", 20}},
         [](const Parsed& p) { return p.request.logprobs && p.request.top_logprobs == 20; }}}},
      {"prompt_logprobs",
       {{{{"prompt_logprobs", 2}},
         [](const Parsed& p) { return p.request.prompt_logprobs == 2 && p.line.prompt_logprobs == 2; }},
        {{{"prompt_logprobs", 0}}, [](const Parsed& p) { return p.request.prompt_logprobs == 0; }}}},
      {"echo",
       {{{{"echo", true}}, [](const Parsed& p) { return p.line.echo && p.request.prompt_logprobs == -1; }},
        {{{"echo", true}, {"logprobs", 2}},
         [](const Parsed& p) { return p.request.prompt_logprobs == 2 && p.line.prompt_logprobs == -1; }},
        {{{"echo", true}, {"logprobs", 2}, {"prompt_logprobs", 5}},
         [](const Parsed& p) { return p.request.prompt_logprobs == 5 && p.line.prompt_logprobs == 5; }},
        {{{"echo", false}}, [](const Parsed& p) { return !p.line.echo; }}}},
      {"return_token_ids",
       {{{{"return_token_ids", true}}, [](const Parsed& p) { return p.line.token_ids; }, kCompletions}}},
      {"return_tokens_as_token_ids",
       {{{{"return_tokens_as_token_ids", true}},
         [](const Parsed& p) { return p.line.tokens_as_ids; },
         kCompletions}}},
  };
  return all;
}

TEST(RequestFields, SetWhatTheyAreFor) {
  for (const auto& [name, cases] : good_values())
    for (const Good& good : cases)
      for (const FieldForms form : {kPlain, kCompletions}) {
        if ((good.forms & form) == 0) continue;
        const json object = form == kPlain ? plain(good.fields) : completions(good.fields);
        const Parsed parsed = parse(object);
        EXPECT_EQ(parsed.line.error.code, "") << object << parsed.line.error.message;
        EXPECT_TRUE(good.check(parsed)) << object;
      }
}

// What the table says is read has a case above, in each of the two forms.
TEST(RequestFields, AreAllTested) {
  for (const FieldRule& rule : kFieldTable) {
    if (rule.standing != Standing::read || (rule.tasks & kGenerate) == 0) continue;
    // Those of chat templates and of structured output need a helper process and have tests of their own.
    static const std::set<std::string_view> kStructured = {"guided_choice", "guided_json", "guided_regex",
                                                           "response_format", "structured_outputs"};
    if (rule.forms == kMessages || kStructured.contains(rule.name)) continue;
    for (const FieldForms form : {kPlain, kCompletions}) {
      if ((rule.forms & form) == 0 || rule.name == "tokens") continue;
      const auto cases = good_values().find(std::string(rule.name));
      ASSERT_NE(cases, good_values().end()) << rule.name;
      EXPECT_TRUE(std::ranges::any_of(cases->second, [&](const Good& good) {
        return (good.forms & form) != 0;
      })) << rule.name;
    }
  }
}

struct Bad {
  json fields;
  const char* code;
  const char* names;
  FieldForms forms = kPrompts;
};

TEST(RequestFields, BadValuesAreErrorLinesThatNameThem) {
  const Bad cases[] = {
      {{{"min_p", 1.1}}, "invalid_request", "'min_p'"},
      {{{"min_p", -0.1}}, "invalid_request", "'min_p'"},
      {{{"min_p", "x"}}, "invalid_request", "'min_p'"},
      {{{"repetition_penalty", 0}}, "invalid_request", "'repetition_penalty'"},
      {{{"repetition_penalty", true}}, "invalid_request", "'repetition_penalty'"},
      {{{"presence_penalty", 2.1}}, "invalid_request", "'presence_penalty'"},
      {{{"frequency_penalty", -2.1}}, "invalid_request", "'frequency_penalty'"},
      {{{"logit_bias", {1, 2}}}, "invalid_request", "'logit_bias'"},
      {{{"logit_bias", {{"x", 1}}}}, "invalid_request", "\"x\""},
      {{{"logit_bias", {{"-1", 1}}}}, "invalid_request", "\"-1\""},
      {{{"logit_bias", {{"5", "1"}}}}, "invalid_request", "'logit_bias'"},
      {{{"logit_bias", {{"5", 1}, {"05", 1}}}}, "invalid_request", "twice"},
      {{{"logit_bias", {{"259", 1}}}}, "token_out_of_range", "259"},
      {{{"allowed_token_ids", json::array()}}, "invalid_request", "'allowed_token_ids' is empty"},
      {{{"allowed_token_ids", {259}}}, "token_out_of_range", "'allowed_token_ids'"},
      {{{"stop_token_ids", {-1}}}, "token_out_of_range", "'stop_token_ids'"},
      {{{"stop_token_ids", 3}}, "invalid_request", "'stop_token_ids'"},
      {{{"bad_words", "x"}}, "invalid_request", "'bad_words'"},
      {{{"bad_words", {"a", ""}}}, "invalid_request", "'bad_words'"},
      {{{"bad_words", {"  "}}}, "invalid_request", "makes no token"},
      {{{"min_tokens", -1}}, "invalid_request", "'min_tokens'"},
      {{{"min_tokens", 17}}, "invalid_request", "'min_tokens' is 17"},
      {{{"n", 0}, {"temperature", 1}}, "invalid_request", "'n'"},
      {{{"n", 129}, {"temperature", 1}}, "invalid_request", "128"},
      {{{"n", 2}}, "invalid_request", "temperature"},
      {{{"n", 2}, {"best_of", 3}, {"temperature", 1}}, "unsupported", "'best_of'"},
      {{{"max_tokens", 0}}, "invalid_request", "'max_tokens' is 0"},
      {{{"max_tokens", 0}, {"echo", false}}, "invalid_request", "'max_tokens' is 0"},
      {{{"max_tokens", 0}, {"echo", true}, {"n", 2}, {"temperature", 1}}, "invalid_request", "'n' is 2"},
      {{{"max_tokens", 3}, {"max_completion_tokens", 4}}, "invalid_request", "'max_completion_tokens' 4"},
      {{{"max_completion_tokens", -1}}, "invalid_request", "'max_completion_tokens'"},
      {{{"ignore_eos", 1}}, "invalid_request", "'ignore_eos'"},
      {{{"include_stop_str_in_output", "yes"}}, "invalid_request", "'include_stop_str_in_output'"},
      {{{"echo", "yes"}}, "invalid_request", "'echo'"},
      {{{"prompt_logprobs", -1}}, "invalid_request", "'prompt_logprobs'"},
      {{{"prompt_logprobs", 21}}, "invalid_request", "20"},
      {{{"logprobs", 21}}, "invalid_request", "20"},
      {{{"logprobs", -1}}, "invalid_request", "'logprobs'"},
      {{{"logprobs", true}}, "invalid_request", "'logprobs'", kCompletions},
      {{{"top_k", -2}}, "invalid_request", "'top_k'"},
      {{{"truncate_prompt_tokens", 0}}, "invalid_request", "'truncate_prompt_tokens'"},
      {{{"truncate_prompt_tokens", -2}}, "invalid_request", "'truncate_prompt_tokens'"},
      {{{"truncation_side", "middle"}}, "invalid_request", "middle"},
      {{{"add_special_tokens", 1}}, "invalid_request", "'add_special_tokens'"},
      {{{"prompt", ""}, {"add_special_tokens", false}}, "invalid_request", "'prompt' is empty"},
      {{{"prompt", {"a", "b"}}}, "unsupported", "2 prompts", kCompletions},
      {{{"prompt", {{1}, {2}}}}, "unsupported", "2 prompts", kCompletions},
      {{{"prompt", {nullptr}}}, "invalid_request", "'prompt'", kCompletions},
      {{{"top_logprobs", 2}}, "unsupported_field", "'top_logprobs'"},
      {{{"id", "x"}}, "unsupported_field", "'id'", kCompletions},
      {{{"model", "x"}}, "unsupported_field", "'model'", kPlain},
  };
  for (const Bad& bad : cases)
    for (const FieldForms form : {kPlain, kCompletions}) {
      if ((bad.forms & form) == 0) continue;
      const json object = form == kPlain ? plain(bad.fields) : completions(bad.fields);
      const Parsed parsed = parse(object);
      EXPECT_EQ(parsed.line.error.code, bad.code) << object << parsed.line.error.message;
      EXPECT_NE(parsed.line.error.message.find(bad.names), std::string::npos) << parsed.line.error.message;
    }
}

TEST(RequestFields, TheEnvelopeHasFourKeys) {
  json object = completions(json::object());
  object["extra"] = 1;
  EXPECT_EQ(parse(object).line.error.code, "unsupported_field");
  EXPECT_EQ(parse(object).line.id, "c");
  object["extra"] = nullptr;
  EXPECT_EQ(parse(object).line.error.code, "");
}

// vLLM encodes a bad word alone and behind a space; the second one counts if its first token is another and there
// are no more of them.
TEST(RequestFields, BadWordsInsideAText) {
  class SpacedWords final : public Tokenizer {
   public:
    std::vector<std::int32_t> encode(std::string_view text) const override {
      if (text == "cat") return {1};
      if (text == " cat") return {2};
      if (text == "dog") return {3, 4};
      if (text == " dog") return {5};
      if (text == "cow") return {6, 7};
      if (text == " cow") return {6, 8};
      return {9};
    }
    std::string token_bytes(std::int32_t) const override { return ""; }
  };
  ModelConfig config;
  config.vocab_size = 10;
  config.max_context = 64;
  const TokenizerChoice tokenizer{std::make_unique<SpacedWords>(), ""};
  RequestParser parser(Task::generate, config, tokenizer, {1000});
  Parsed parsed;
  parser.parse(R"({"prompt": "a", "bad_words": [" cat", "dog", "cow"]})", 0, parsed.line, parsed.request);
  EXPECT_EQ(parsed.request.rules.bad_words, (std::vector<Ids>{{1}, {2}, {3, 4}, {6, 7}}));
}

TEST(RequestFields, ScoreReadsWhatTheTextIs) {
  const auto score = [](const json& object) { return parse(object, Task::score); };
  EXPECT_EQ(score({{"prompt", "abc"}, {"truncate_prompt_tokens", 2}}).request.tokens, (Ids{'b', 'c'}));
  const Parsed cut = score({{"context", "abcd"}, {"continuation", "ef"}, {"truncate_prompt_tokens", 3}});
  EXPECT_EQ(cut.request.tokens, (Ids{'d', 'e', 'f'}));
  EXPECT_EQ(cut.request.score_from, 1);
  EXPECT_EQ(
      score({{"context", "abcd"}, {"continuation", "ef"}, {"truncate_prompt_tokens", 2}}).line.error.code,
      "invalid_request");
  EXPECT_EQ(score({{"context", "ab"}, {"continuation", "c"}, {"add_special_tokens", false}}).request.tokens,
            (Ids{'a', 'b', 'c'}));
  for (const char* name : {"max_tokens", "n", "echo", "logit_bias", "stream", "response_format"})
    EXPECT_EQ(score({{"prompt", "ab"}, {name, "whatever"}}).line.error.code, "") << name;
  EXPECT_EQ(score({{"prompt", "ab"}, {"logprobs", 3}}).request.top_logprobs, 3);
  EXPECT_EQ(score({{"prompt", "ab"}, {"logprobs", true}}).request.top_logprobs, 0);
  EXPECT_EQ(score({{"prompt", "ab"}, {"logprobs", 21}}).line.error.code, "invalid_request");
  EXPECT_EQ(score({{"prompt", "ab"}, {"frobnicate", 1}}).line.error.code, "unsupported_field");
}

}  // namespace
}  // namespace ptrt
