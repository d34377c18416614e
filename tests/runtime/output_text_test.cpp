#include "runtime/serving/output_text.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ptrt {
namespace {

class LetterTokenizer final : public Tokenizer {
 public:
  std::vector<std::int32_t> encode(std::string_view) const override { return {}; }
  std::string token_bytes(std::int32_t id) const override {
    return id < 0 ? "" : std::string(static_cast<std::size_t>(id / 26 + 1), static_cast<char>('a' + id % 26));
  }
};

TEST(OutputText, StopsBeforeTheFirstMatchOverTokenBorders) {
  const LetterTokenizer tokenizer;
  const std::vector<std::string> stop{"cdd", "bc"};
  OutputText text(&tokenizer, stop);
  EXPECT_FALSE(text.append(0));   // a
  EXPECT_FALSE(text.append(1));   // b
  EXPECT_FALSE(text.append(-1));  // special: no text
  EXPECT_TRUE(text.append(2));    // c: "bc" is complete
  EXPECT_EQ(text.bytes(), "a");
}

TEST(OutputText, TheEarliestOfTwoMatchesInOneToken) {
  const LetterTokenizer tokenizer;
  const std::vector<std::string> stop{"dd", "cd"};
  OutputText text(&tokenizer, stop);
  EXPECT_FALSE(text.append(2));
  EXPECT_TRUE(text.append(26 + 3));  // "dd": both "cd" and "dd" match; "cd" begins first
  EXPECT_EQ(text.bytes(), "");
}

TEST(OutputText, MayEndBehindTheMatch) {
  const LetterTokenizer tokenizer;
  const std::vector<std::string> stop{"dd", "cd"};
  OutputText text(&tokenizer, stop, true);
  EXPECT_FALSE(text.append(2));
  EXPECT_TRUE(text.append(26 + 3));
  EXPECT_EQ(text.bytes(), "cd");
}

TEST(OutputText, AMatchEndsInATokenThatMayStop) {
  const LetterTokenizer tokenizer;
  const std::vector<std::string> stop{"b", "cd"};
  OutputText text(&tokenizer, stop);
  EXPECT_FALSE(text.append(1, false));  // b
  EXPECT_FALSE(text.append(2, false));  // c
  EXPECT_TRUE(text.append(3));          // d: "cd" ends here, "b" does not
  EXPECT_EQ(text.bytes(), "b");
}

}  // namespace
}  // namespace ptrt
