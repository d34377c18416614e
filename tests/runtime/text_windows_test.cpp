// The windows of a text: those of the loop in Hugging Face's guide to perplexity, each token scored once.
#include "runtime/serving/text_windows.h"

#include <gtest/gtest.h>

namespace ptrt {
namespace {

TEST(TextWindows, EveryTokenIsScoredOnce) {
  for (std::int64_t tokens = 2; tokens < 40; tokens++)
    for (std::int64_t window = 2; window < 20; window++)
      for (std::int64_t stride = 1; stride < window; stride++) {
        const TextWindows windows(tokens, window, stride);
        std::int64_t number = 0, scored = 1;
        for (std::int64_t begin = 0; scored < tokens; begin += stride, number++) {
          const auto [from, to, score_from] = windows.at(number);
          ASSERT_EQ(from, begin);
          ASSERT_EQ(to, std::min(begin + window, tokens));
          ASSERT_EQ(score_from, scored);
          ASSERT_GT(score_from, from) << "nothing stands before it";
          ASSERT_GT(to, score_from) << "nothing to score";
          scored = to;
        }
        ASSERT_EQ(windows.count(), number) << tokens << " tokens, " << window << ", " << stride;
      }
}

TEST(TextWindows, RefusesWhatWouldLoseTokens) {
  EXPECT_THROW(TextWindows(10, 4, 4), Error);
  EXPECT_THROW(TextWindows(10, 4, 0), Error);
  EXPECT_THROW(TextWindows(1, 4, 2), Error);
}

}  // namespace
}  // namespace ptrt
