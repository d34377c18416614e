#include <algorithm>
#include <numeric>

#include "kernels/base/philox.h"
#include "op_test.h"

namespace ptrt::testing {
namespace {

class Sampling : public OpTest {};
class SamplingBits : public CpuOpTest {};
PTRT_EVERY_BACKEND(Sampling);
PTRT_EVERY_TARGET(SamplingBits);

// Known answers of Random123 (kat_vectors, philox4x32 10).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformDrawsFillTheUnitInterval) {
  double sum = 0, low = 1, high = 0;
  constexpr int kDraws = 100000;
  for (int i = 0; i < kDraws; ++i) {
    const double u = uniform_draw(42, static_cast<std::uint64_t>(i));
    sum += u;
    low = std::min(low, u);
    high = std::max(high, u);
  }
  EXPECT_NEAR(sum / kDraws, 0.5, 0.005);
  EXPECT_GE(low, 0.0);
  EXPECT_LT(high, 1.0);
  EXPECT_NE(uniform_draw(1, 0), uniform_draw(2, 0));
  EXPECT_NE(uniform_draw(1, 0), uniform_draw(1, 1));
}

Activation random_logits(std::int64_t rows, std::int64_t vocab, float spread, unsigned seed) {
  Random random(seed);
  Activation logits(1, rows, vocab);
  std::normal_distribution<float> normal(0, spread);
  for (float& logit : logits.values) logit = normal(random.engine());
  return logits;
}

std::vector<double> softmax(std::vector<double> x) {
  const double max = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& e : x) sum += e = std::exp(e - max);
  for (double& e : x) e /= sum;
  return x;
}

// The probability of each token (docs/SPEC.md, Requests).
std::vector<double> expected_distribution(const float* logits, std::size_t vocab,
                                          const SampleParams& params) {
  std::vector<double> x(logits, logits + vocab);
  for (double& e : x) e /= double{params.temperature};
  std::vector<std::size_t> order(vocab);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return x[a] > x[b]; });
  if (params.top_k > 0 && static_cast<std::size_t>(params.top_k) < vocab)
    for (std::size_t i = static_cast<std::size_t>(params.top_k); i < vocab; ++i) x[order[i]] = -INFINITY;
  const std::vector<double> p = softmax(x);
  double mass = p[order[0]];  // the largest always stays
  for (std::size_t i = 1; i < vocab; ++i) {
    if (mass >= double{params.top_p}) x[order[i]] = -INFINITY;
    mass += p[order[i]];
  }
  return softmax(x);
}

TEST_P(Sampling, GreedyTakesTheLowestIdOfTheLargest) {
  const auto backend = make_backend();
  for (const std::int64_t vocab : {1, 3, 259, 4096, 4097, 20000}) {
    Activation logits = random_logits(3, vocab, 1, static_cast<unsigned>(vocab));
    logits.tensor.row(0, 1)[vocab / 2] = 50;
    logits.tensor.row(0, 1)[vocab - 1] = 50;
    logits.tensor.row(0, 2)[vocab - 1] = 60;
    std::vector<SampleParams> params(3);
    std::vector<Sampled> out(3);
    backend->sample(logits.tensor, params, out);
    const float* row = logits.tensor.row(0, 0);
    EXPECT_EQ(out[0].token, std::max_element(row, row + vocab) - row);
    EXPECT_EQ(out[1].token, vocab / 2);
    EXPECT_EQ(out[2].token, vocab - 1);
  }
}

TEST_P(Sampling, FollowsTheDistribution) {
  const auto backend = make_backend();
  constexpr std::int64_t kVocab = 40;
  constexpr int kDraws = 20000, kRows = 50;
  const Activation one = random_logits(1, kVocab, 1.5f, 3);
  Activation logits(1, kRows, kVocab);
  for (std::int64_t r = 0; r < kRows; ++r) std::copy_n(one.values.begin(), kVocab, logits.tensor.row(0, r));
  for (const SampleParams& base : {SampleParams{1.0f},
                                   {0.5f},
                                   {2.0f, 7},
                                   {1.0f, 0, 0.8f},
                                   {1.5f, 20, 0.6f},
                                   {1.0f, 1},
                                   {1.0f, 0, 0.0f}}) {
    const std::vector<double> expected = expected_distribution(one.values.data(), kVocab, base);
    std::vector<int> counts(kVocab);
    std::vector<SampleParams> params(kRows, base);
    std::vector<Sampled> out(kRows);
    for (int draw = 0; draw < kDraws; draw += kRows) {
      for (int r = 0; r < kRows; ++r) {
        params[static_cast<std::size_t>(r)].seed = 77;
        params[static_cast<std::size_t>(r)].position = static_cast<std::uint64_t>(draw + r);
      }
      backend->sample(logits.tensor, params, out);
      for (const Sampled& sampled : out) ++counts[static_cast<std::size_t>(sampled.token)];
    }
    for (std::size_t id = 0; id < expected.size(); ++id) {
      const double deviation = std::sqrt(expected[id] * (1 - expected[id]) / kDraws);
      EXPECT_NEAR(counts[id] / double{kDraws}, expected[id], 5 * deviation + 1e-12)
          << "token " << id << " temperature " << base.temperature << " top_k " << base.top_k << " top_p "
          << base.top_p;
    }
  }
}

// Many tokens, so that chunks, histogram segments and their growth come into play: token by token as the
// reference.
TEST_P(SamplingBits, ChoosesAsTheReferenceInALargeVocabulary) {
  const auto backend = make_backend();
  ReferenceBackend reference;
  constexpr std::int64_t kRows = 6, kVocab = 30011;
  for (const float spread : {0.05f, 1.0f, 6.0f}) {
    Activation logits = random_logits(kRows, kVocab, spread, 11);
    for (float& logit : logits.values) logit = std::round(logit * 64) / 64;  // many ties
    std::vector<Sampled> actual(kRows), expected(kRows);
    for (const SampleParams& base : {SampleParams{1.0f},
                                     {0.7f},
                                     {1.0f, 5},
                                     {1.0f, 1000},
                                     {1.0f, 29000},
                                     {1.0f, 0, 0.5f},
                                     {1.0f, 0, 0.999f},
                                     {0.3f, 0, 0.9f},
                                     {5.0f, 300, 0.9f},
                                     {1.0f, 40000, 0.3f}}) {
      std::vector<SampleParams> params(kRows, base);
      for (std::size_t r = 0; r < params.size(); ++r)
        params[r].seed = r * 0x123456789ULL, params[r].position = r;
      backend->sample(logits.tensor, params, actual);
      reference.sample(logits.tensor, params, expected);
      for (std::size_t r = 0; r < params.size(); ++r)
        EXPECT_EQ(actual[r].token, expected[r].token)
            << "row " << r << " spread " << spread << " temperature " << base.temperature << " top_k "
            << base.top_k << " top_p " << base.top_p;
    }
  }
}

TEST_P(Sampling, LogProbabilities) {
  const auto backend = make_backend();
  for (const std::int64_t vocab : {1, 5, 259, 9000}) {
    Activation logits = random_logits(4, vocab, 4, static_cast<unsigned>(vocab));
    for (std::int64_t i = 0; i < vocab; ++i) logits.tensor.row(0, 3)[i] += 2000;  // far from zero
    std::vector<std::int32_t> targets{0, static_cast<std::int32_t>(vocab - 1),
                                      static_cast<std::int32_t>(vocab / 2),
                                      static_cast<std::int32_t>(vocab / 3)};
    std::vector<float> log_probs(4);
    backend->log_probs(logits.tensor, targets, log_probs);
    std::vector<SampleParams> params(4, SampleParams{0.8f, 0, 0.9f, 5, 6, true});
    params[0].temperature = 0;
    std::vector<Sampled> out(4);
    backend->sample(logits.tensor, params, out);
    for (std::size_t r = 0; r < 4; ++r) {
      const float* row = logits.tensor.row(0, static_cast<std::int64_t>(r));
      const std::vector<double> p = softmax(std::vector<double>(row, row + vocab));
      EXPECT_NEAR(log_probs[r], std::log(p[static_cast<std::size_t>(targets[r])]), 5e-6);
      EXPECT_NEAR(out[r].logprob, std::log(p[static_cast<std::size_t>(out[r].token)]), 5e-6);
    }
  }
}

TEST_P(SamplingBits, HangOnTheRowAlone) {
  constexpr std::int64_t kRows = 33, kVocab = 9001;
  const Activation logits = random_logits(kRows, kVocab, 2, 21);
  std::vector<SampleParams> params(kRows);
  std::vector<std::int32_t> targets(kRows);
  for (std::size_t r = 0; r < params.size(); ++r) {
    params[r] = {static_cast<float>(r % 4) * 0.5f,
                 r % 3 == 0 ? 0 : static_cast<std::int32_t>(r),
                 r % 5 == 0 ? 0.7f : 1.0f,
                 r,
                 r * r,
                 true};
    targets[r] = static_cast<std::int32_t>(r * 100);
  }
  std::vector<Sampled> alone(kRows);
  std::vector<float> alone_log_probs(kRows);
  const auto single = make_backend(1);
  for (std::size_t r = 0; r < params.size(); ++r) {
    const Tensor row{logits.tensor.row(0, static_cast<std::int64_t>(r)), 1, 1, kVocab, kVocab};
    single->sample(row, {&params[r], 1}, {&alone[r], 1});
    single->log_probs(row, {&targets[r], 1}, {&alone_log_probs[r], 1});
  }
  for (const int threads : {1, 2, 3}) {
    std::vector<Sampled> out(kRows);
    std::vector<float> log_probs(kRows);
    const auto backend = make_backend(threads);
    backend->sample(logits.tensor, params, out);
    backend->log_probs(logits.tensor, targets, log_probs);
    EXPECT_TRUE(same_bits(log_probs.data(), alone_log_probs.data(), kRows));
    for (std::size_t r = 0; r < params.size(); ++r) {
      EXPECT_EQ(out[r].token, alone[r].token) << "row " << r;
      EXPECT_TRUE(same_bits(&out[r].logprob, &alone[r].logprob, 1)) << "row " << r;
    }
  }
}

// Whatever the logits are, a token of the vocabulary comes out.
TEST_P(SamplingBits, SurvivesBadLogits) {
  const auto backend = make_backend();
  constexpr std::int64_t kVocab = 5000;
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const bool everywhere : {false, true}) {
      Activation logits = random_logits(1, kVocab, 1, 2);
      for (std::size_t i = 0; i < logits.values.size(); i += everywhere ? 1 : 7) logits.values[i] = bad;
      for (const SampleParams& params :
           {SampleParams{}, {1.0f}, {1.0f, 10}, {1.0f, 0, 0.5f}, {1e-40f}, {1e30f}}) {
        Sampled out{-1, 0};
        backend->sample(logits.tensor, {&params, 1}, {&out, 1});
        EXPECT_GE(out.token, 0);
        EXPECT_LT(out.token, kVocab);
      }
    }
  }
}

TEST_P(Sampling, TinyTemperatureIsGreedy) {
  const auto backend = make_backend();
  const Activation logits = random_logits(1, 5000, 1, 4);
  const auto largest = std::max_element(logits.values.begin(), logits.values.end()) - logits.values.begin();
  for (const float temperature : {1e-4f, 1e-30f})
    for (const std::int32_t top_k : {0, 50}) {
      const SampleParams params{temperature, top_k, 1, 9, 9};
      Sampled out;
      backend->sample(logits.tensor, {&params, 1}, {&out, 1});
      EXPECT_EQ(out.token, largest) << temperature;
    }
}

}  // namespace
}  // namespace ptrt::testing
