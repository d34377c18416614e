// How far two runs of a model are from each other, and how far they may be.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/tensor.h"
#include "runtime/serving/engine.h"

namespace ptrt::testing {

// Mean distance of the log-probabilities of all tokens; the tokens must be equal.
inline double compare(const std::vector<Completion>& cuda, const std::vector<Completion>& cpu) {
  double distance = 0;
  std::size_t count = 0;
  for (std::size_t i = 0; i < cpu.size(); ++i) {
    EXPECT_EQ(cuda[i].tokens, cpu[i].tokens)
        << "request " << i << ": " << cuda[i].text << " for " << cpu[i].text;
    EXPECT_EQ(cuda[i].logprobs.size(), cpu[i].logprobs.size());
    for (std::size_t p = 0; p < std::min(cuda[i].logprobs.size(), cpu[i].logprobs.size()); ++p, ++count)
      distance += std::abs(double{cuda[i].logprobs[p]} - double{cpu[i].logprobs[p]});
  }
  return distance / static_cast<double>(std::max<std::size_t>(count, 1));
}

// How far float16 and bfloat16 may be from the CPU's float32 in the mean of a log-probability: the goal, and
// for float16 what shows that nothing is rounded to bfloat16 on the way.
inline double allowed_distance(DType activations) {
  return activations == DType::float16 ? 3e-3 : 3e-2;
}

}  // namespace ptrt::testing
