// Puts the samples of a request together, which are done in any order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "runtime/requests/request.h"

namespace ptrt {

class SampleGather {
 public:
  explicit SampleGather(std::int64_t samples) : parts_(static_cast<std::size_t>(samples)), left_(samples) {}

  // That of one sample, by itself. True when it was the last one.
  bool add(std::int64_t sample, Completion&& completion) {
    parts_[static_cast<std::size_t>(sample)] = std::move(completion);
    return --left_ == 0;
  }

  // The request's: the first sample's with the others' outputs, from the first token of any to the end of the
  // last. Where samples failed, it is the first of those.
  Completion take() {
    Completion whole = std::move(parts_.front());
    for (std::size_t s = 1; s < parts_.size(); s++) {
      Completion& part = parts_[s];
      whole.finish_s = std::max(whole.finish_s, part.finish_s);
      whole.first_token_s = std::min(whole.first_token_s, part.first_token_s);
      if (whole.failed()) continue;
      if (part.failed()) {
        part.first_token_s = whole.first_token_s;
        part.finish_s = whole.finish_s;
        whole = std::move(part);
      } else {
        whole.more.push_back(std::move(part));
      }
    }
    return whole;
  }

 private:
  std::vector<Completion> parts_;
  std::int64_t left_;
};

}  // namespace ptrt
