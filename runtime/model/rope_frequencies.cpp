#include "runtime/model/rope_frequencies.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

RopeFrequencies unscaled(double theta, std::int64_t head_dim) {
  RopeFrequencies rope;
  for (std::int64_t j = 0; j < head_dim / 2; j++)
    rope.frequencies.push_back(
        std::pow(theta, -2.0 * static_cast<double>(j) / static_cast<double>(head_dim)));
  return rope;
}

// Low frequencies are divided by the factor, high ones stay, and those between are blended by the turns
// that they make in the original context.
double llama3_frequency(const RopeScaling& scaling, double frequency) {
  const double turns =
      static_cast<double>(scaling.original_max_position) * frequency / (2 * std::numbers::pi);
  if (turns < scaling.low_freq_factor) return frequency / scaling.factor;
  if (turns >= scaling.high_freq_factor) return frequency;
  const double kept =
      (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1 - kept) * frequency / scaling.factor + kept * frequency;
}

// YaRN (arXiv 2309.00071): pairs below `low` keep their frequency, those above `high` are divided by
// the factor, with a ramp between.
class YarnRamp {
 public:
  YarnRamp(const RopeScaling& scaling, double theta, std::int64_t head_dim)
      : low_(std::max(0.0, std::floor(pair_of(scaling.beta_fast, scaling, theta, head_dim)))),
        high_(std::min(static_cast<double>(head_dim - 1),
                       std::ceil(pair_of(scaling.beta_slow, scaling, theta, head_dim)))) {
    if (low_ == high_) high_ += 0.001;
  }
  // The share of pair j that is divided by the factor.
  double scaled_share(std::int64_t j) const {
    return std::clamp((static_cast<double>(j) - low_) / (high_ - low_), 0.0, 1.0);
  }

 private:
  // The pair, as a fraction, that makes that many turns in the original context.
  static double pair_of(double turns, const RopeScaling& scaling, double theta, std::int64_t head_dim) {
    const double wavelength =
        static_cast<double>(scaling.original_max_position) / (turns * 2 * std::numbers::pi);
    return static_cast<double>(head_dim) * std::log(wavelength) / (2 * std::log(theta));
  }

  double low_, high_;
};

double yarn_magnitude(const RopeScaling& scaling) {
  if (scaling.attention_factor) return *scaling.attention_factor;
  return scaling.factor <= 1 ? 1 : 0.1 * std::log(scaling.factor) + 1;
}

}  // namespace

RopeFrequencies rope_frequencies(const ModelConfig& config) {
  RopeFrequencies rope = unscaled(config.rope_theta, config.head_dim);
  if (!config.rope_scaling) return rope;
  const RopeScaling& scaling = *config.rope_scaling;
  switch (scaling.type) {
    case RopeScalingType::linear:
      for (double& frequency : rope.frequencies) frequency /= scaling.factor;
      break;
    case RopeScalingType::llama3:
      for (double& frequency : rope.frequencies) frequency = llama3_frequency(scaling, frequency);
      break;
    case RopeScalingType::yarn: {
      const YarnRamp ramp(scaling, config.rope_theta, config.head_dim);
      for (std::size_t j = 0; j < rope.frequencies.size(); j++) {
        const double share = ramp.scaled_share(static_cast<std::int64_t>(j)), whole = rope.frequencies[j];
        rope.frequencies[j] = whole / scaling.factor * share + whole * (1 - share);
      }
      rope.magnitude = yarn_magnitude(scaling);
      break;
    }
  }
  return rope;
}

RopeFrequencies local_rope_frequencies(const ModelConfig& config) {
  PTRT_CHECK(config.has_local_rope_theta());
  return unscaled(*config.rope_theta_local, config.head_dim);
}

}  // namespace ptrt
