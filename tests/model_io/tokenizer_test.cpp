#include "model_io/tokenizer/tokenizer.h"

#include <gtest/gtest.h>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>

#include "model_fixture.h"
#include "model_io/text/unicode.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"

namespace ptrt {
namespace {

std::string text_of(const Tokenizer& tokenizer, const std::vector<std::int32_t>& ids) {
  std::string text;
  for (const std::int32_t id : ids) text += tokenizer.token_bytes(id);
  return text;
}

TEST(ByteTokenizer, IdsAreBytes) {
  const auto choice = make_tokenizer({"bytes", {}, "m.h5"}, small_config());
  ASSERT_TRUE(choice.tokenizer);
  EXPECT_EQ(choice.why_none, "");
  const std::string text("h\xc3\xa9\0\xff", 5);
  const auto ids = choice.tokenizer->encode(text);
  EXPECT_EQ(ids, (std::vector<std::int32_t>{'h', 0xc3, 0xa9, 0, 0xff}));
  EXPECT_EQ(text_of(*choice.tokenizer, ids), text);
  for (const std::int32_t special : {256, 258, 1000, -1})
    EXPECT_EQ(choice.tokenizer->token_bytes(special), "");
  EXPECT_TRUE(choice.tokenizer->encode("").empty());
}

TEST(ByteTokenizer, ARenderedTextNamesSpecialIds) {
  const auto choice = make_tokenizer({"bytes", {}, "m.h5"}, small_config({{"vocab_size", 259}}));
  const Tokenizer& tokenizer = *choice.tokenizer;
  EXPECT_EQ(tokenizer.token_text(256), "<|256|>");
  EXPECT_EQ(tokenizer.token_text('a'), "a");
  EXPECT_EQ(tokenizer.token_text(259), "");
  EXPECT_EQ(tokenizer.encode_rendered("<|256|>a<|258|>"), (std::vector<std::int32_t>{256, 'a', 258}));
  for (const std::string plain : {"<|259|>", "<|65|>", "<|0256|>", "<|+256|>", "<|256", "<|", "<|256 |>"})
    EXPECT_EQ(tokenizer.encode_rendered(plain), tokenizer.encode(plain)) << plain;
}

TEST(TokenizerChoice, ModelsWithoutOneSayWhy) {
  const auto none = make_tokenizer({}, small_config());
  EXPECT_FALSE(none.tokenizer);
  expect_words(none.why_none, {"no tokenizer"});
}

TEST(TokenizerChoice, WhatMakesNoSenseIsBadInput) {
  expect_words(message_of([] {
                 make_tokenizer({"wordpiece", {}, "m.h5"}, small_config());
               }),
               {"m.h5", "wordpiece"});
  const ModelConfig narrow =
      small_config({{"vocab_size", 255}, {"bos_token_id", nullptr}, {"eos_token_ids", {1}}});
  expect_words(message_of([&] { make_tokenizer({"bytes", {}, "m.h5"}, narrow); }), {"m.h5", "256", "255"});
  for (const std::vector<std::uint8_t>& model :
       {std::vector<std::uint8_t>{}, {1, 2, 3, 4}, {0xff, 0xff, 0xff, 0xff}})
    expect_words(message_of([&] {
                   make_tokenizer({"sentencepiece", model, "m.h5"}, small_config());
                 }),
                 {"m.h5", "not a sentencepiece model"});
}

class SentencePiece : public testing::Test {
 protected:
  // A model of a few hundred pieces, with a byte for whatever it does not know.
  static void SetUpTestSuite() {
    TempFolder folder;
    std::ofstream corpus(folder / "corpus.txt");
    for (int i = 0; i < 50; ++i)
      corpus << "the cat sat on the mat\nthe dog ate the food and ran away\nadd " << i << " and " << 2 * i
             << "\nsort the letters of the word\nwhat is the sum of these numbers?\n";
    corpus.close();
    const auto status = sentencepiece::SentencePieceTrainer::Train(
        "--input=" + (folder / "corpus.txt") + " --model_prefix=" + (folder / "sp") +
        " --vocab_size=340 --model_type=bpe --byte_fallback=true --normalization_rule_name=identity "
        "--hard_vocab_limit=false "
        "--user_defined_symbols=<sep> --minloglevel=3");
    ASSERT_TRUE(status.ok()) << status.ToString();
    std::ifstream model(folder / "sp.model", std::ios::binary);
    blob_ = {"sentencepiece", {std::istreambuf_iterator<char>(model), {}}, "m.h5"};
  }

  static TokenizerBlob blob_;
};

TokenizerBlob SentencePiece::blob_;

TEST_F(SentencePiece, TokensJoinToTheText) {
  const auto choice = make_tokenizer(blob_, small_config({{"vocab_size", 340}}));
  ASSERT_TRUE(choice.tokenizer);
  for (const std::string text :
       {"the cat sat", "add 3 and 14", "na\xc3\xafve \xe2\x98\x83 \xf0\x9f\x99\x82 Q", "a\nb"}) {
    const auto ids = choice.tokenizer->encode(text);
    EXPECT_FALSE(ids.empty());
    // The processor puts a space before the first word.
    EXPECT_EQ(text_of(*choice.tokenizer, ids), " " + text);
  }
  EXPECT_LT(choice.tokenizer->encode("the cat sat on the mat").size(), 15u);
}

TEST_F(SentencePiece, SpecialTokensHaveNoText) {
  sentencepiece::SentencePieceProcessor processor;
  ASSERT_TRUE(
      processor
          .LoadFromSerializedProto({reinterpret_cast<const char*>(blob_.model.data()), blob_.model.size()})
          .ok());
  const auto choice = make_tokenizer(blob_, small_config({{"vocab_size", 1000}}));
  const Tokenizer& tokenizer = *choice.tokenizer;
  for (const int id : {processor.unk_id(), processor.bos_id(), processor.eos_id(), 999, -1})
    EXPECT_EQ(tokenizer.token_bytes(id), "") << id;
  EXPECT_EQ(tokenizer.token_bytes(processor.PieceToId("<0x0A>")), "\n");
  EXPECT_EQ(tokenizer.token_bytes(processor.PieceToId("<0xFF>")), "\xff");
  EXPECT_EQ(tokenizer.token_bytes(processor.PieceToId("\u2581the")), " the");
  EXPECT_EQ(tokenizer.token_bytes(processor.PieceToId("<sep>")), "<sep>");
  const auto ids = tokenizer.encode("</s> <s>");  // text, not the special tokens
  EXPECT_EQ(std::count(ids.begin(), ids.end(), processor.eos_id()), 0);
}

TEST_F(SentencePiece, ARenderedTextNamesControlTokens) {
  const auto choice = make_tokenizer(blob_, small_config({{"vocab_size", 340}}));
  const Tokenizer& tokenizer = *choice.tokenizer;
  const auto once = tokenizer.encode("the cat");
  std::vector<std::int32_t> expected = {1};
  for (int i = 0; i < 2; i++) {
    expected.insert(expected.end(), once.begin(), once.end());
    expected.push_back(2);
  }
  EXPECT_EQ(tokenizer.token_text(1) + tokenizer.token_text(2), "<s></s>");
  EXPECT_EQ(tokenizer.encode_rendered("<s>the cat</s>the cat</s>"), expected);
}

TEST_F(SentencePiece, MustFitTheVocabulary) {
  const ModelConfig config = small_config({{"vocab_size", 300}});
  expect_words(message_of([&] { make_tokenizer(blob_, config); }), {"m.h5", "pieces", "vocab_size = 300"});
}

// A field of bytes or of a message in a protocol buffer.
std::string field(int number, const std::string& bytes) {
  std::string encoded(1, static_cast<char>(number << 3 | 2));
  for (std::size_t length = bytes.size();
       encoded += static_cast<char>(length < 0x80 ? length : length | 0x80), length >= 0x80;)
    length >>= 7;
  return encoded + bytes;
}

// The library walks the trie of replacements without looking where it goes.
TEST_F(SentencePiece, DamagedReplacementsAreRefused) {
  const auto table = [](const std::vector<std::uint32_t>& units, const std::string& texts) {
    std::string bytes(4 * (units.size() + 1), '\0');
    const auto size = static_cast<std::uint32_t>(4 * units.size());
    std::memcpy(bytes.data(), &size, 4);
    std::memcpy(bytes.data() + 4, units.data(), size);
    return bytes + texts;
  };
  std::vector<std::uint32_t> sound(256), outside(256), no_text(256), no_leaf(256), value_first(256);
  outside[0] = 0x3ffu << 10;
  no_text[7] = 0x80000000u | 2;
  no_leaf[5] = 0x100;  // its text is where unit 5 says: 256
  value_first[0] = 0x80000000u;
  const std::string text("a\0", 2);
  const struct {
    std::string table;
    bool taken;
  } cases[] = {{table(sound, text), true},          {table(outside, text), false},
               {table(no_text, text), false},       {table(no_leaf, text), false},
               {table(value_first, text), false},   {table(sound, "a"), false},
               {table(sound, ""), false},           {std::string("\xff\xff\xff\x7f", 4), false},
               {std::string(4, '\0') + text, false}};
  for (const int spec : {3, 5})  // the normalizer's, the denormalizer's
    for (const auto& c : cases) {
      TokenizerBlob blob = blob_;
      const std::string more = field(spec, field(2, c.table));
      blob.model.insert(blob.model.end(), more.begin(), more.end());
      const auto make = [&] { make_tokenizer(blob, small_config({{"vocab_size", 340}})); };
      if (c.taken)
        EXPECT_NO_THROW(make());
      else
        expect_words(message_of(make), {"m.h5", "not a sentencepiece model", "precompiled_charsmap"});
    }
}

struct Utf8Case {
  const char *bytes, *expected;  // R stands for U+FFFD
};

// Replacements as Python's bytes.decode("utf-8", errors="replace") makes them.
constexpr Utf8Case kUtf8Cases[] = {
    {"plain", "plain"},
    {"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x99\x82", "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x99\x82"},
    {"\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf",
     "\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf"},
    {"\x80", "R"},  // a continuation alone
    {"a\xff"
     "b\xfe",
     "aRbR"},                          // bytes that never occur
    {"\xc0\xaf", "RR"},                // overlong
    {"\xe0\x80\xaf", "RRR"},           // overlong
    {"\xf0\x80\x80\xaf", "RRRR"},      // overlong
    {"\xed\xa0\x80", "RRR"},           // surrogate
    {"\xed\x9f\xbf", "\xed\x9f\xbf"},  // the last before the surrogates
    {"\xf4\x90\x80\x80", "RRRR"},      // above U+10FFFF
    {"\xf5\x80", "RR"},
    {"\xe2\x82", "R"},  // cut short: one subpart
    {"\xf0\x9f\x99", "R"},
    {"\xf0\x9f", "R"},
    {"\xf0", "R"},
    {"\xe2\x82"
     "a",
     "Ra"},
    {"\xe2"
     "a",
     "Ra"},
    {"\xe2\xe2\x82\xac", "R\xe2\x82\xac"},
    {"\xf0\x9f\x99\xf0\x9f\x99\x82", "R\xf0\x9f\x99\x82"},
    {"\xc3\xc3\xa9", "R\xc3\xa9"},
    {"\x61\xf1\x80\x80\xe1\x80\xc2\x62\x80\x63\x80\xbf\x64",
     "aRRRbRcRRd"},  // the Unicode standard's own example
};

TEST(SanitizeUtf8, ReplacesMaximalSubparts) {
  for (const Utf8Case& c : kUtf8Cases) {
    std::string expected;
    for (const char byte : std::string_view(c.expected))
      expected += byte == 'R' ? "\uFFFD" : std::string(1, byte);
    EXPECT_EQ(sanitize_utf8(c.bytes), expected) << testing::PrintToString(std::string(c.bytes));
    EXPECT_EQ(sanitize_utf8(expected), expected);
    EXPECT_EQ(is_utf8(c.bytes), c.bytes == expected) << testing::PrintToString(std::string(c.bytes));
    EXPECT_TRUE(is_utf8(expected));
  }
  EXPECT_EQ(sanitize_utf8(std::string_view("a\0b", 3)), std::string("a\0b", 3));
}

TEST(NormalForms, TakeInvalidBytesAsReplacementCharacters) {
  for (const Utf8Case& c : kUtf8Cases)
    for (const NormalForm form : {NormalForm::nfc, NormalForm::nfd, NormalForm::nfkc, NormalForm::nfkd})
      EXPECT_EQ(normalize(form, c.bytes), normalize(form, sanitize_utf8(c.bytes)))
          << testing::PrintToString(std::string(c.bytes));
}

}  // namespace
}  // namespace ptrt
