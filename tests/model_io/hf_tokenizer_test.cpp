// Tokenizers from a tokenizer.json, against what the tokenizers library makes of the same files and texts
// (golden/, made by scripts/goldens/make_tokenizer_goldens.py).
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "model_fixture.h"
#include "model_io/text/unicode.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"

namespace ptrt {
namespace {

using nlohmann::json;

json golden(const std::string& name) {
  std::ifstream file(PTRT_GOLDEN_DIR "/" + name + ".json");
  return json::parse(file);
}

TokenizerChoice choice_of(const std::string& tokenizer_json, std::int64_t vocab_size = 1000) {
  const ModelConfig config =
      small_config({{"vocab_size", vocab_size}, {"bos_token_id", nullptr}, {"eos_token_ids", {0}}});
  return make_tokenizer({"huggingface", {tokenizer_json.begin(), tokenizer_json.end()}, "m.h5"}, config);
}

std::unique_ptr<Tokenizer> tokenizer_of(const json& file) {
  TokenizerChoice choice = choice_of(file.dump());
  EXPECT_EQ(choice.why_none, "");
  if (choice.tokenizer == nullptr) throw std::runtime_error("no tokenizer");
  return std::move(choice.tokenizer);
}

// The golden file's tokenizer with other components; of the model the keys that are given change.
json with(json file, json changes) {
  if (changes.contains("model") && changes["model"].is_object()) {
    file["model"].update(changes["model"]);
    changes.erase("model");
  }
  file.update(changes);
  return file;
}

std::string text_of(const Tokenizer& tokenizer, const std::vector<std::int32_t>& ids) {
  std::string text;
  for (const std::int32_t id : ids) text += tokenizer.token_bytes(id);
  return text;
}

class Golden : public testing::TestWithParam<const char*> {};

TEST_P(Golden, IdsAndTextOfTheLibrary) {
  const json file = golden(GetParam()), texts = golden("texts");
  ASSERT_GT(texts.size(), 50u);
  for (const json& variant : file["variants"]) {
    SCOPED_TRACE(variant["name"].get<std::string>());
    const auto tokenizer = tokenizer_of(with(file["tokenizer"], variant["changes"]));
    const bool decodes = variant["decodes"];
    ASSERT_EQ(variant["cases"].size(), texts.size());
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const std::string text = texts[i];
      const json& expected = variant["cases"][i];
      const auto ids = tokenizer->encode(text);
      EXPECT_EQ(ids, (decodes ? expected[0] : expected).get<std::vector<std::int32_t>>()) << texts[i];
      if (!decodes) continue;
      EXPECT_EQ(sanitize_utf8(text_of(*tokenizer, ids)), expected.size() > 1 ? expected[1] : texts[i]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(HuggingFace, Golden,
                         testing::Values("gpt2", "llama3", "qwen", "llama2", "mistral", "gemma"),
                         [](const auto& family) { return std::string(family.param); });

// A text of characters from all of Unicode, common ones and white space more often.
std::string random_text(std::mt19937& random) {
  constexpr char32_t kLimits[] = {0x21, 0x80, 0x80, 0x600, 0x3000, 0x10000, 0x110000};
  std::string text;
  for (unsigned length = random() % 60; length > 0; --length) {
    char32_t c = random() % kLimits[random() % std::size(kLimits)];
    if (c >= 0xd800 && c < 0xe000) c = U'\n';
    if (c < 0x80) {
      text += static_cast<char>(c);
      continue;
    }
    const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    text += static_cast<char>((0xff00 >> (more + 1)) | (c >> (6 * more)));
    for (int shift = 6 * (more - 1); shift >= 0; shift -= 6)
      text += static_cast<char>(0x80 | ((c >> shift) & 0x3f));
  }
  return text;
}

TEST(HuggingFace, ByteLevelTokensJoinToTheText) {
  std::mt19937 random(7);
  for (const std::string name : {"gpt2", "llama3"}) {
    const auto tokenizer = tokenizer_of(golden(name)["tokenizer"]);
    for (int i = 0; i < 2000; ++i) {
      const std::string text = random_text(random);
      ASSERT_EQ(sanitize_utf8(text), text);
      ASSERT_EQ(text_of(*tokenizer, tokenizer->encode(text)), text);
    }
  }
}

TEST(HuggingFace, ByteFallbackTokensJoinToTheTextBehindASpace) {
  std::mt19937 random(8);
  const auto tokenizer = tokenizer_of(golden("llama2")["tokenizer"]);
  for (int i = 0; i < 2000; ++i) {
    const std::string text = 'x' + random_text(random);
    if (text.find("\u2581") != text.npos) continue;  // what the pieces have for a space
    ASSERT_EQ(text_of(*tokenizer, tokenizer->encode(text)), ' ' + text);
  }
}

TEST(HuggingFace, LongTextsTakeLinearTime) {  // quadratic time would be minutes
  constexpr std::size_t kLength = 400'000;
  std::string letters, marks = "a";
  for (std::size_t i = 0; i < kLength; ++i) letters += static_cast<char>('a' + i * i % 7);
  for (std::size_t i = 0; i < kLength / 4; ++i) marks += "\u0301\u0323";
  const std::string brackets = [] {
    std::string text;
    for (std::size_t i = 0; i < kLength / 2; ++i) text += "<|";
    return text;
  }();
  for (const std::string name : {"llama3", "qwen", "llama2"}) {
    const auto tokenizer = tokenizer_of(golden(name)["tokenizer"]);
    for (const std::string& text :
         {letters, brackets, std::string(kLength, ' '), std::string(kLength, '\n') + "x"}) {
      const std::string space = name == "llama2" ? " " : "";
      EXPECT_EQ(text_of(*tokenizer, tokenizer->encode(text)), space + text);
    }
    if (name ==
        "qwen") {  // NFC: the marks below come before those above, and nothing composes with "a" but one
      const std::string ordered = text_of(*tokenizer, tokenizer->encode(marks));
      EXPECT_EQ(ordered.substr(0, 7), "\u1ea1\u0323\u0323");
      EXPECT_EQ(ordered.substr(ordered.size() - 2), "\u0301");
    }
  }
}

TEST(HuggingFace, SpecialTokensHaveNoText) {
  const auto tokenizer = tokenizer_of(golden("qwen")["tokenizer"]);
  const auto ids = tokenizer->encode("<|im_start|>a<tool><|im_end|>");
  ASSERT_EQ(ids.size(), 4u);
  EXPECT_EQ(text_of(*tokenizer, ids), "a<tool>");
  EXPECT_EQ(tokenizer->token_text(ids[0]) + tokenizer->token_text(ids[1]), "<|im_start|>a");
  for (const std::int32_t id : {-1, 999, INT32_MAX}) EXPECT_EQ(tokenizer->token_bytes(id), "");
  const auto llama2 = tokenizer_of(with(golden("llama2")["tokenizer"], {{"added_tokens", json::array()}}));
  EXPECT_EQ(llama2->token_bytes(0), "") << "<unk> is no text, also where it is no added token";
}

TEST(HuggingFace, TextThatIsNoUtf8) {
  const auto tokenizer = tokenizer_of(golden("gpt2")["tokenizer"]);
  EXPECT_EQ(text_of(*tokenizer, tokenizer->encode("a\xff\xf0\x9f z\xc3")), "a\uFFFD\uFFFD z\uFFFD");
}

TEST(HuggingFace, AnUnknownTokenThatIsNotThere) {
  const auto tokenizer = tokenizer_of(
      with(golden("llama2")["tokenizer"], {{"model", {{"byte_fallback", false}, {"unk_token", "<none>"}}}}));
  EXPECT_FALSE(tokenizer->encode("the cat").empty());
  expect_words(message_of([&] { tokenizer->encode("\u0f00"); }), {"\u0f00", "<none>"});
}

TEST(HuggingFace, ARegexThatBacktracksGivesUp) {
  for (const std::string regex : {"(a|aa|(a+)+)+b", "(?:a|a)*b|a"}) {
    const json slow = {
        {"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}};
    const auto tokenizer = tokenizer_of(with(golden("gpt2")["tokenizer"], {{"pre_tokenizer", slow}}));
    for (const std::size_t length : {60, 100'000})
      expect_words(message_of([&] { tokenizer->encode(std::string(length, 'a')); }),
                   {"regular expression", regex, "gave up"});
  }
}

json sequence(const char* key, const json& step) {
  return {{"type", "Sequence"}, {key, json::array({step})}};
}

// What the library's Replace makes of the texts (tokenizers 0.23.3).
TEST(HuggingFace, ARegexMeansWhatItMeansToTheLibrary) {
  const struct {
    const char *regex, *text, *expected;
  } cases[] = {
      {"\\h+", "0aF g 1b", "_ g _"},
      {"\\p{N}{1,3}+", "1234567 x", "_ x"},
      {"(?im:a.b)", "A\nb a-B ab", "_ _ ab"},
      {"(?<=a+)b", "aab b", "aa_ b"},
      {"(?<!a|bc)d", "ad bcd cd", "ad bcd c_"},
      {"^.", "ab\ncd\r\ne", "_b\n_d\r\n_"},
      {".$", "ab\ncd\r\ne", "a_\ncd_\n_"},
      {"(?>a+)ab", "aaab", "aaab"},
      {"a++ab|b", "aaab", "aaa_"},
      {"[[:alpha:]&&[^aeiou]]", "audio \u00c9", "au_io _"},
      {"(\\p{L})\\1", "aabbc", "__c"},
      {"x*", "axxb", "_a_b_"},
      {"\\R", "a\r\nb\nc", "a_b_c"},
      {"(?i:\u017f|K)", "sS\u017f kK\u212a", "___ ___"},
      {"\\s+(?!\\S)", "a   b  ", "a_ b_"},
      {"\\p{Han}+|\\p{Hiragana}+", "\u4e16\u754c\u3053\u3001x", "__\u3001x"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.regex);
    const json replace = {{"type", "Replace"}, {"pattern", {{"Regex", c.regex}}}, {"content", "_"}};
    const auto tokenizer = tokenizer_of(with(golden("llama3")["tokenizer"], {{"normalizer", replace}}));
    EXPECT_EQ(text_of(*tokenizer, tokenizer->encode(c.text)), c.expected);
  }
}

TEST(HuggingFace, ThreadsEncodeAtTheSameTime) {
  const auto tokenizer = tokenizer_of(golden("llama3")["tokenizer"]);
  std::mt19937 random(10);
  std::vector<std::string> texts;
  std::vector<std::vector<std::int32_t>> expected;
  for (int i = 0; i < 200; ++i) {
    texts.push_back(random_text(random));
    expected.push_back(tokenizer->encode(texts.back()));
  }
  std::atomic<int> wrong = 0;
  {
    std::vector<std::jthread> threads;
    for (std::size_t t = 0; t < 4; ++t)
      threads.emplace_back([&, t] {
        for (std::size_t i = 0; i < 2 * texts.size(); ++i) {
          const std::size_t which = (i + 50 * t) % texts.size();
          if (tokenizer->encode(texts[which]) != expected[which]) ++wrong;
        }
      });
  }
  EXPECT_EQ(wrong, 0);
}

json split_at(const char* regex, const char* behavior = "Isolated") {
  return {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", behavior}, {"invert", false}};
}

TEST(HuggingFace, WhatIsNotSupportedIsNamed) {
  const json fuse = {{"type", "Fuse"}};
  const json replace = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "b"}};
  const json empty = {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "b"}};
  const json cut_end = {{"type", "Strip"}, {"content", " "}, {"start", 0}, {"stop", 1}};
  const struct {
    json changes;
    std::vector<std::string> words;
  } cases[] = {
      {{{"model", {{"type", "Unigram"}}}}, {"model", "Unigram"}},
      {{{"model", {{"type", "WordPiece"}}}}, {"model", "WordPiece"}},
      {{{"model", {{"dropout", 0.1}}}}, {"model.dropout"}},
      {{{"model", {{"continuing_subword_prefix", "##"}}}}, {"continuing_subword_prefix"}},
      {{{"model", {{"end_of_word_suffix", "</w>"}}}}, {"end_of_word_suffix"}},
      {{{"model", {{"novelty", 1}}}}, {"model.novelty"}},
      {{{"novelty", 1}}, {"\"novelty\""}},
      {{{"version", "2.0"}}, {"version", "2.0"}},
      {{{"normalizer", {{"type", "Nmt"}}}}, {"normalizer", "Nmt"}},
      {{{"normalizer", sequence("normalizers", {{"type", "Precompiled"}})}},
       {"normalizers[0]", "Precompiled"}},
      {{{"normalizer", {{"type", "NFC"}, {"strength", 2}}}}, {"normalizer.strength"}},
      {{{"normalizer", empty}}, {"normalizer", "empty pattern"}},
      {{{"pre_tokenizer", {{"type", "UnicodeScripts"}}}}, {"pre_tokenizer", "UnicodeScripts"}},
      {{{"pre_tokenizer", sequence("pretokenizers", split_at("(?<=a+b"))}},
       {"pretokenizers[0]", "regular expression", "(?<=a+b", "parenthesis"}},
      {{{"pre_tokenizer", split_at("[a")}}, {"regular expression", "[a", "char-class"}},
      {{{"pre_tokenizer", split_at("\\p{Script=Han}")}}, {"regular expression", "p{Script=Han}", "property"}},
      {{{"pre_tokenizer", split_at("(?z)")}}, {"regular expression", "(?z)", "group option"}},
      {{{"pre_tokenizer", split_at("a", "Sideways")}}, {"Sideways"}},
      {{{"decoder", nullptr}}, {"decoder"}},
      {{{"decoder", {{"type", "BPEDecoder"}, {"suffix", "</w>"}}}}, {"decoder", "BPEDecoder"}},
      {{{"decoder", {{"type", "Sequence"}, {"decoders", {fuse, replace}}}}}, {"decoders[1]", "joining"}},
      {{{"decoder", {{"type", "Sequence"}, {"decoders", {fuse, cut_end}}}}},
       {"decoders[1]", "end of the text"}},
  };
  const json base = golden("llama3")["tokenizer"];
  for (const auto& c : cases) {
    const TokenizerChoice choice = choice_of(with(base, c.changes).dump());
    EXPECT_FALSE(choice.tokenizer) << c.changes;
    expect_words(choice.why_none, c.words);
    expect_words(choice.why_none, {"huggingface", "not supported"});
  }
}

json token(const json& id, const char* content) {
  return json::array({{{"id", id}, {"content", content}, {"special", true}}});
}

TEST(HuggingFace, WhatIsBrokenIsBadInput) {
  const struct {
    json changes;
    std::vector<std::string> words;
  } cases[] = {
      {{{"model", nullptr}}, {"model", "object"}},
      {{{"model", {{"vocab", json::array()}}}}, {"model.vocab", "object", "[]"}},
      {{{"model", {{"vocab", {{"a", 1}, {"b", 1}}}}}}, {"vocab", "\"a\"", "\"b\"", "id 1"}},
      {{{"model", {{"vocab", {{"a", 1000}}}}}}, {"\"a\"", "1000", "vocab_size = 1000"}},
      {{{"model", {{"vocab", {{"a", -1}}}}}}, {"vocab.a", "-1"}},
      {{{"model", {{"vocab", {{"a", 1.5}}}}}}, {"vocab.a", "1.5"}},
      {{{"model", {{"vocab", {{"a", "1"}}}}}}, {"vocab.a"}},
      {{{"model", {{"vocab", {{"a", 18446744073709551615u}}}}}}, {"vocab.a", "18446744073709551615"}},
      {{{"model", {{"merges", json::array({json::array({"a", "\u2603"})})}}}},
       {"merges[0]", "\u2603", "vocabulary"}},
      {{{"model", {{"merges", json::array({json::array({"<", "$"})})}}}}, {"merges[0]", "<$", "vocabulary"}},
      {{{"model", {{"merges", {"ab"}}}}}, {"merges[0]", "ab"}},
      {{{"model", {{"merges", {"a b c"}}}}}, {"merges[0]", "a b c"}},
      {{{"model", {{"merges", json::array({json::array({"a", "b", "c"})})}}}}, {"merges[0]"}},
      {{{"model", {{"merges", {1}}}}}, {"merges[0]", "1"}},
      {{{"model", {{"merges", "a b"}}}}, {"model.merges", "array"}},
      {{{"model", {{"byte_fallback", "yes"}}}}, {"byte_fallback", "yes"}},
      {{{"added_tokens", {{"a", 1}}}}, {"added_tokens", "array"}},
      {{{"added_tokens", {1}}}, {"added_tokens[0]", "object"}},
      {{{"added_tokens", token(1000, "<x>")}}, {"added_tokens[0].id", "1000", "vocab_size"}},
      {{{"added_tokens", token(-3, "<x>")}}, {"added_tokens[0].id", "-3"}},
      {{{"added_tokens", token(5, "<x>")}}, {"<x>", "id 5", "in the vocabulary"}},
      {{{"added_tokens", token(900, "a")}}, {"\"a\"", "900", "the vocabulary has it"}},
      {{{"added_tokens", {token(900, "<x>")[0], token(900, "<y>")[0]}}}, {"<x>", "<y>", "900"}},
      {{{"normalizer", "NFC"}}, {"normalizer", "object", "NFC"}},
      {{{"normalizer", {{"type", "Replace"}, {"pattern", json::object()}, {"content", ""}}}},
       {"normalizer.pattern", "Regex"}},
      {{{"normalizer", {{"type", "Prepend"}}}}, {"normalizer.prepend", "missing"}},
      {{{"pre_tokenizer", {{"type", 7}}}}, {"pre_tokenizer.type", "7"}},
      {{{"pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "ab"}}}}, {"replacement", "one character"}},
      {{{"pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "last"}}}},
       {"prepend_scheme", "last"}},
      {{{"decoder", {{"type", "Strip"}, {"content", " "}, {"start", -1}, {"stop", 0}}}},
       {"decoder.start", "-1"}},
      {{{"decoder", sequence("decoders", 5)}}, {"decoder.decoders[0]", "5"}},
  };
  const json base = golden("llama3")["tokenizer"];
  for (const auto& c : cases) {
    const std::string message = message_of([&] { choice_of(with(base, c.changes).dump()); });
    expect_words(message, {"m.h5", "/tokenizer/model"});
    expect_words(message, c.words);
  }
}

TEST(HuggingFace, WhatIsNoJsonIsBadInput) {
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  const struct {
    std::string text;
    std::vector<std::string> words;
  } cases[] = {
      {"", {"not valid JSON"}},
      {"{", {"not valid JSON"}},
      {"[]", {"not a JSON object"}},
      {"{}", {"model", "missing"}},
      {R"({"model": {"vocab": {"a": 1, "a": 2}}})", {"\"a\"", "twice"}},
      {R"({"model": {"vocab": {"\ud800": 1}}})", {"not valid JSON"}},
      {"{\"model\": \"\xff\"}", {"not valid JSON"}},
      {R"({"x": )" + deep + "}", {"nested"}},
      {R"({"x": 1e999})", {"not valid JSON"}},
  };
  for (const auto& c : cases) {
    const std::string message = message_of([&] { choice_of(c.text); });
    expect_words(message, {"m.h5", "/tokenizer/model"});
    expect_words(message, c.words);
  }
}

// Whatever the bytes are, the file is taken, refused or bad input, and a tokenizer that is taken works.
TEST(HuggingFace, DamagedFilesDoNoHarm) {
  std::mt19937 random(9);
  for (const std::string name : {"gpt2", "mistral"}) {
    json file = golden(name)["tokenizer"];
    file["model"]["merges"] = json::array();  // most of the text, and much alike
    const std::string text = file.dump();
    for (int i = 0; i < 250; ++i) {
      std::string damaged = text;
      constexpr std::string_view kBytes = "\"{}[]:,0129-.eE\\ntrufalse \x80\xc3";
      for (unsigned changes = 1 + random() % 3; changes > 0; --changes)
        damaged[random() % damaged.size()] = kBytes[random() % kBytes.size()];
      if (random() % 8 == 0) damaged.resize(random() % damaged.size());
      try {
        const TokenizerChoice choice = choice_of(damaged);
        if (choice.tokenizer) choice.tokenizer->encode("the cat \u0f00\n\n12");
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::bad_input) << error.what();
      }
    }
  }
}

}  // namespace
}  // namespace ptrt
