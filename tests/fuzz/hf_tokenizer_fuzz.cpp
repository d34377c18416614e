// tokenizer.json: refused, not supported, or a tokenizer whose ids are the model's. It takes every text, in any order,
// and says the same again.
#include <array>

#include "driver/json_mutator.h"
#include "driver/target.h"
#include "kernels/base/error.h"
#include "model_io/text/unicode.h"
#include "tokenizer_input.h"

namespace ptrt::fuzz {
namespace {

constexpr std::int64_t kVocabSize = 1000;

constexpr std::array kKeys = std::to_array<std::string_view>({
    "version",
    "truncation",
    "padding",
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
    "type",
    "id",
    "content",
    "single_word",
    "lstrip",
    "rstrip",
    "normalized",
    "special",
    "normalizers",
    "pretokenizers",
    "decoders",
    "pattern",
    "String",
    "Regex",
    "behavior",
    "invert",
    "prepend",
    "strip_left",
    "strip_right",
    "individual_digits",
    "add_prefix_space",
    "trim_offsets",
    "use_regex",
    "replacement",
    "prepend_scheme",
    "split",
    "start",
    "stop",
    "dropout",
    "unk_token",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
    "vocab",
    "merges",
});
constexpr std::array kValues = std::to_array<std::string_view>({
    "\"BPE\"",
    "\"1.0\"",
    "\"a\"",
    "\"e\"",
    "\"<unk>\"",
    "\"<0x41>\"",
    "[\"a\", \"t\"]",
    "\"t h\"",
    "\"\\u2581\"",
    R"({"type":"Sequence","normalizers":[]})",
    R"({"type":"NFC"})",
    R"({"type":"NFKD"})",
    R"({"type":"Lowercase"})",
    R"({"type":"Prepend","prepend":"ab"})",
    R"({"type":"Replace","pattern":{"String":"a"},"content":"aa"})",
    R"({"type":"Replace","pattern":{"Regex":" +"},"content":""})",
    R"({"type":"Strip","strip_left":true,"strip_right":true})",
    R"({"type":"Strip","content":"a","start":2,"stop":1})",
    R"({"type":"ByteLevel","add_prefix_space":true,"use_regex":true})",
    R"({"type":"ByteFallback"})",
    R"({"type":"Fuse"})",
    R"({"type":"Metaspace","replacement":"_","prepend_scheme":"first","split":true})",
    R"({"type":"Digits","individual_digits":true})",
    R"({"type":"Punctuation","behavior":"Contiguous"})",
    R"({"type":"Whitespace"})",
    R"({"type":"WhitespaceSplit"})",
    R"j({"type":"Split","pattern":{"Regex":"(?<=a)t|\\s+(?!\\S)"},"behavior":"MergedWithNext","invert":true})j",
    R"({"type":"Split","pattern":{"Regex":"(a|a)*b"},"behavior":"Removed","invert":false})",
    R"({"id":999,"content":"the","single_word":true,"lstrip":true,"rstrip":true,"normalized":true,"special":false})",
    R"({"Regex":"\\p{L}+|\\K."})",
    R"({"Regex":""})",
    R"({"String":" "})",
    "\"MergedWithPrevious\"",
    "\"Isolated\"",
    "\"Removed\"",
    "\"Contiguous\"",
    "\"always\"",
    "\"never\"",
});
constexpr std::array kTexts = std::to_array<std::string_view>({
    "",
    " the cat sat on the mat.\n\n  12 a",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!",
    "caf\xc3\xa9 e\xcc\x81 \xe6\x97\xa5\xe6\x9c\xac \xf0\x9f\x99\x82 \xef\xac\x81 </s><unk>",
    "\xff\xc3 a\xe2\x96\x81\xed\xa0\x80",
});

void check_tokenizer(const Tokenizer& tokenizer) {
  for (const std::string_view text : kTexts) {
    std::vector<std::int32_t> ids;
    try {
      ids = tokenizer.encode(text);
    } catch (const Error& error) {
      expect(error.code() == ExitCode::bad_input, "exit status {}: {}", static_cast<int>(error.code()),
             error.what());
      continue;
    }
    for (const std::int32_t id : ids) {
      expect(id >= 0 && id < kVocabSize, "the id {}", id);
      tokenizer.token_bytes(id);
    }
    expect(ids == tokenizer.encode(text), "the same text has other ids the second time");
  }
  for (const std::int64_t id : {std::int64_t{-1}, kVocabSize, std::int64_t{INT32_MAX}})
    expect(tokenizer.token_bytes(static_cast<std::int32_t>(id)).empty(), "the id {} has a text", id);
}

}  // namespace

void run_input(std::string_view input) {
  const auto choice = try_tokenizer("huggingface", input, kVocabSize);
  if (!choice) return;
  expect((choice->tokenizer == nullptr) != choice->why_none.empty(), "neither a tokenizer nor a reason");
  expect(sanitize_utf8(choice->why_none) == choice->why_none, "a reason that is no UTF-8: {}",
         choice->why_none);
  if (choice->tokenizer) check_tokenizer(*choice->tokenizer);
}

std::string mutate_input(std::string input, Random& random) {
  return mutate_json(std::move(input), {kKeys, kValues}, random);
}

}  // namespace ptrt::fuzz
