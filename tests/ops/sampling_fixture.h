// Random logits and their softmax in float64.
#pragma once

#include "ops/op_fixture.h"

namespace ptrt::testing {

// With `ties`, of few different values.
inline void randomize(Activation& logits, float spread, unsigned seed, bool ties = false) {
  Random random(seed);
  std::normal_distribution<float> normal(0, spread);
  for (float& logit : logits.values) {
    logit = normal(random.engine());
    if (ties) logit = std::round(logit * 64) / 64;
  }
}

inline std::vector<double> softmax(std::vector<double> x) {
  const double max = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& e : x) sum += e = std::exp(e - max);
  for (double& e : x) e /= sum;
  return x;
}

}  // namespace ptrt::testing
