// A long text cut into windows so that each token but the first is scored once, with at most `window` - 1
// tokens before it: the sliding window of Hugging Face's guide to perplexity. Window k begins at token
// k · stride and scores what the window before it did not reach. The stride is smaller than the window, so
// the first token that a window scores has one before it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/base/error.h"

namespace ptrt {

struct TextWindow {
  std::int64_t begin = 0, end = 0;  // tokens of the text
  std::int64_t score_from = 0;      // the first of them that is scored
};

class TextWindows {
 public:
  TextWindows(std::int64_t tokens, std::int64_t window, std::int64_t stride)
      : tokens_(tokens), window_(window), stride_(stride) {
    PTRT_CHECK(tokens >= 2 && stride >= 1 && stride < window);
  }

  std::int64_t count() const {
    return tokens_ <= window_ ? 1 : 1 + (tokens_ - window_ + stride_ - 1) / stride_;
  }
  TextWindow at(std::int64_t number) const {
    return {number * stride_, end_of(number), number == 0 ? 1 : end_of(number - 1)};
  }

 private:
  std::int64_t end_of(std::int64_t number) const { return std::min(number * stride_ + window_, tokens_); }

  std::int64_t tokens_, window_, stride_;
};

}  // namespace ptrt
