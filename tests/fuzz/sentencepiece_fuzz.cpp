// tokenizer.model: bad input, or a tokenizer whose ids are the model's.
#include <array>

#include "driver/protobuf_mutator.h"
#include "driver/target.h"
#include "kernels/base/error.h"
#include "tokenizer_input.h"

namespace ptrt::fuzz {
namespace {

constexpr std::int64_t kVocabSize = 400;
constexpr auto kTexts = std::to_array<std::string_view>({
    "",
    " the cat sat on the mat.\n\n  12 a",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa<sep><c></s>",
    "caf\xc3\xa9 e\xcc\x81 \xe6\x97\xa5\xe6\x9c\xac \xf0\x9f\x99\x82 \xef\xac\x81 AB \xe3\x80\x80",
    "\xff\xc3 a\xe2\x96\x81\xed\xa0\x80",
});

}  // namespace

void run_input(std::string_view input) {
  const auto choice = try_tokenizer("sentencepiece", input, kVocabSize);
  if (!choice) return;
  expect(choice->tokenizer != nullptr, "no tokenizer: {}", choice->why_none);
  for (std::int32_t id = -1; id <= kVocabSize; ++id) choice->tokenizer->token_bytes(id);
  for (const std::string_view text : kTexts) {
    try {
      for (const std::int32_t id : choice->tokenizer->encode(text))
        expect(id >= 0 && id < kVocabSize, "the id {}", id);
    } catch (const Error& error) {
      expect(error.code() == ExitCode::bad_input, "exit status {}: {}", static_cast<int>(error.code()),
             error.what());
    }
  }
}

std::string mutate_input(std::string input, Random& random) {
  return mutate_protobuf(input, random);
}

}  // namespace ptrt::fuzz
