#include <limits>
#include <utility>

#include "ops/fixtures/sampling_fixture.h"

namespace ptrt::testing {
namespace {

class Sampling : public OpTest {
 protected:
  void reserve(std::int64_t rows) {
    backend().reserve(
        {.rows = rows, .logit_rows = rows, .sequences = 1, .context = 1, .heads = 1, .head_dim = 1});
  }
  std::vector<Sampled> sample(const Array& logits, const std::vector<SampleParams>& params) {
    std::vector<Sampled> out(params.size(), Sampled{-1, 0});
    backend().sample(logits.tensor, params, out);
    return out;
  }
  // The tokens that the scalar reference chooses, and their log-probabilities.
  void expect_as_reference(const Array& logits, const std::vector<SampleParams>& params) {
    const std::vector<Sampled> actual = sample(logits, params);
    std::vector<Sampled> expected(params.size());
    ReferenceBackend().sample(logits.host.tensor, params, expected);
    for (std::size_t r = 0; r < params.size(); ++r) {
      EXPECT_EQ(actual[r].token, expected[r].token)
          << "vocabulary " << logits.tensor.width << " row " << r << " temperature " << params[r].temperature
          << " top_k " << params[r].top_k << " top_p " << params[r].top_p << " position "
          << params[r].position;
      EXPECT_NEAR(actual[r].logprob, expected[r].logprob, 2e-5);
    }
  }
};
class SamplingAsReference : public Sampling {};
PTRT_EVERY_BACKEND_IN_ONE_TYPE(Sampling);
INSTANTIATE_TEST_SUITE_P(Every, SamplingAsReference,
                         ::testing::ValuesIn(without_reference(backends_on(op_targets(), false))),
                         param_name);

TEST_P(Sampling, GreedyTakesTheLowestIdOfTheLargest) {
  reserve(3);
  for (const std::int64_t vocab : {1, 3, 259, 4096, 4097, 20000}) {
    Array logits(backend(), 1, 3, vocab);
    randomize(logits.host, 1, static_cast<unsigned>(vocab));
    logits.host.tensor.row(0, 1)[vocab / 2] = 50;
    logits.host.tensor.row(0, 1)[vocab - 1] = 50;
    logits.host.tensor.row(0, 2)[vocab - 1] = 60;
    logits.put();
    const std::vector<Sampled> out = sample(logits, std::vector<SampleParams>(3));
    const float* row = logits.host.tensor.row(0, 0);
    EXPECT_EQ(out[0].token, std::max_element(row, row + vocab) - row);
    EXPECT_EQ(out[1].token, vocab / 2);
    EXPECT_EQ(out[2].token, vocab - 1);
  }
}

const std::vector<SampleParams> kParams{{},
                                        {1.0f},
                                        {0.7f},
                                        {1.0f, 1},
                                        {1.0f, 5},
                                        {1.0f, 200},
                                        {1.0f, 1000000},
                                        {1.0f, 0, 0.0f},
                                        {1.0f, 0, 0.5f},
                                        {1.0f, 0, 0.999f},
                                        {0.3f, 0, 0.9f},
                                        {5.0f, 30, 0.9f},
                                        {1e-30f},
                                        {1e-4f, 50}};
// In a larger vocabulary.
const std::vector<SampleParams> kWideParams{
    {1.0f, 1000}, {1.0f, 29000}, {5.0f, 300, 0.9f}, {1.0f, 40000, 0.3f}, {1.0f, 6000, 0.3f}};

// Chunks, histogram segments and their growth come into play in the largest vocabulary.
TEST_P(SamplingAsReference, EveryParameter) {
  for (const std::int64_t vocab : {1, 3, 259, 2049, 5003, 30011}) {
    if (vocab > 30000 && on_cuda() && cuda_kind() == CudaKind::emulated) continue;  // it takes too long
    for (const float spread : {0.05f, 1.0f, 6.0f}) {
      std::vector<SampleParams> params = kParams;
      if (vocab > 30000) params.insert(params.end(), kWideParams.begin(), kWideParams.end());
      const auto rows = static_cast<std::int64_t>(params.size());
      reserve(rows);
      Array logits(backend(), 1, rows, vocab);
      randomize(logits.host, spread, static_cast<unsigned>(vocab), true);
      logits.put();
      for (std::uint64_t position = 0; position < 2; ++position) {
        for (std::size_t r = 0; r < params.size(); ++r) {
          params[r].seed = r * 0x123456789ULL;
          params[r].position = position;
          params[r].want_logprob = r % 2 == 0;
        }
        expect_as_reference(logits, params);
      }
    }
  }
}

TEST_P(Sampling, LogProbabilities) {
  reserve(4);
  for (const std::int64_t vocab : {1, 5, 259, 3000, 9000, 70001}) {
    Array logits(backend(), 1, 4, vocab);
    randomize(logits.host, 4, static_cast<unsigned>(vocab));
    for (std::int64_t i = 0; i < vocab; ++i) logits.host.tensor.row(0, 3)[i] += 2000;  // far from zero
    logits.put();
    const std::vector<std::int32_t> targets{0, static_cast<std::int32_t>(vocab - 1),
                                            static_cast<std::int32_t>(vocab / 2),
                                            static_cast<std::int32_t>(vocab / 3)};
    std::vector<Scored> log_probs(4);
    backend().log_probs(logits.tensor, targets, log_probs);
    std::vector<SampleParams> params(4, SampleParams{0.8f, 0, 0.9f, 5, 6, true});
    params[0].temperature = 0;
    const std::vector<Sampled> out = sample(logits, params);
    for (std::size_t r = 0; r < 4; ++r) {
      const float* row = logits.host.tensor.row(0, static_cast<std::int64_t>(r));
      const std::vector<double> p = softmax(std::vector<double>(row, row + vocab));
      const double target = std::log(p[static_cast<std::size_t>(targets[r])]);
      EXPECT_EQ(log_probs[r].greedy, std::max_element(row, row + vocab) - row == targets[r]);
      EXPECT_NEAR(log_probs[r].logprob, target, on_cuda() ? 1e-5 * std::max(1.0, std::abs(target)) : 5e-6);
      EXPECT_NEAR(out[r].logprob, std::log(p[static_cast<std::size_t>(out[r].token)]),
                  on_cuda() ? 2e-5 : 5e-6);
    }
  }
}

// The lowest id of equal logits is greedy, wherever the others are; every other token is not.
TEST_P(Sampling, GreedyIsTheLowestIdOfTheLargest) {
  for (const std::int64_t vocab : {4, 259, 4100, 9000}) {
    std::vector<std::int32_t> targets{0, 1, static_cast<std::int32_t>(vocab / 2),
                                      static_cast<std::int32_t>(vocab - 2),
                                      static_cast<std::int32_t>(vocab - 1)};
    const auto rows = std::ssize(targets);
    reserve(rows);
    for (const std::size_t lowest : {std::size_t{1}, std::size_t{2}, std::size_t{3}}) {
      Array logits(backend(), 1, rows, vocab);
      randomize(logits.host, 1, static_cast<unsigned>(vocab));
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::size_t i = lowest; i < targets.size(); ++i) logits.host.tensor.row(0, r)[targets[i]] = 40;
      logits.put();
      std::vector<Scored> scored(targets.size());
      backend().log_probs(logits.tensor, targets, scored);
      for (std::size_t r = 0; r < targets.size(); ++r)
        EXPECT_EQ(scored[r].greedy, r == lowest || targets[r] == targets[lowest])
            << "vocabulary " << vocab << " token " << targets[r] << " of those from " << targets[lowest];
    }
  }
}

// Of equal logits in several parts of the vocabulary the lowest id wins, and a part far below adds nothing.
TEST_P(SamplingAsReference, PartsOfALargeVocabulary) {
  constexpr std::int64_t kVocab = 70001;  // on CUDA, more than 32 parts of the least size
  reserve(3);
  Array logits(backend(), 1, 3, kVocab);
  randomize(logits.host, 1, 4, true);
  for (const std::int64_t id : {69999, 2200, 41000}) logits.host.tensor.row(0, 0)[id] = 20;
  std::fill_n(logits.host.tensor.row(0, 1) + 4000, 30000, -3e38f);
  logits.host.tensor.row(0, 2)[kVocab - 1] = 30;
  logits.put();
  // Top_k of 6000 and top_p of 0.95 keep more than the candidates that have a place of their own.
  for (SampleParams params : std::vector<SampleParams>{
           {}, {0.8f}, {1.0f, 50}, {1.0f, 0, 0.5f}, {1.0f, 6000, 0.3f}, {0.9f, 0, 0.95f}, {3.0f, 0, 0.95f}}) {
    const bool unlimited = params.top_k == 0 && params.top_p == 1;
    params.want_logprob = true;
    for (params.position = 0; params.position < (unlimited ? 2 : 1); ++params.position)
      expect_as_reference(logits, {3, params});
    if (params.temperature == 0) {
      EXPECT_EQ(sample(logits, {3, params})[0].token, 2200);
    }
  }
}

// More tokens than have a place of their own, all at one distance from the largest.
TEST_P(SamplingAsReference, CutsAmongEqualLogits) {
  reserve(1);
  Array logits(backend(), 1, 1, 9001);
  std::ranges::fill(logits.host.values, 1.5f);
  logits.put();
  for (SampleParams params : {SampleParams{1.0f, 0, 0.5f}, {1.0f, 0, 0.95f}, {0.5f, 5000, 0.9f}})
    for (params.position = 0; params.position < 3; ++params.position) expect_as_reference(logits, {params});
}

// A row with a logit that is not finite, wherever it is, gives none of the vocabulary's tokens; its
// neighbours keep their bits.
TEST_P(Sampling, TellsWhichRowsAreNotFinite) {
  constexpr std::int64_t kRows = 3;
  reserve(kRows);
  const float negative_nan = std::copysign(NAN, -1.0f);
  for (const std::int64_t vocab : {1, 17, 700, 5003})
    for (const SampleParams& params :
         {SampleParams{}, {1.0f}, {1.0f, 10}, {1.0f, 0, 0.5f}, {1e-40f}, {1e30f}, {0, 0, 1, 0, 0, true}}) {
      Array logits(backend(), 1, kRows, vocab);
      randomize(logits.host, 1, 2, true);
      logits.put();
      const std::vector<SampleParams> all(kRows, params);
      const std::vector<Sampled> sound = sample(logits, all);
      std::vector<std::int32_t> targets(kRows);
      std::vector<Scored> sound_log_probs(kRows), log_probs(kRows);
      backend().log_probs(logits.tensor, targets, sound_log_probs);
      for (const std::int64_t at : {std::int64_t{0}, vocab / 2, vocab - 1})
        for (const float bad : {NAN, negative_nan, INFINITY, -INFINITY}) {
          float& logit = logits.host.tensor.row(0, 1)[at];
          const float before = std::exchange(logit, bad);
          logits.put();
          const std::vector<Sampled> out = sample(logits, all);
          backend().log_probs(logits.tensor, targets, log_probs);
          EXPECT_FALSE(out[1].finite()) << "vocabulary " << vocab << ", " << bad << " at " << at;
          EXPECT_EQ(out[1].token, 0) << "it may be fed";
          EXPECT_TRUE(std::isnan(log_probs[1].logprob));
          EXPECT_FALSE(log_probs[1].greedy);
          for (const std::size_t r : {std::size_t{0}, std::size_t{2}}) {
            EXPECT_EQ(out[r].token, sound[r].token);
            EXPECT_TRUE(same_bits(&out[r].logprob, &sound[r].logprob, 1));
            EXPECT_TRUE(same_bits(&log_probs[r].logprob, &sound_log_probs[r].logprob, 1));
          }
          logit = before;
        }
    }
}

// Logits of any finite size give a token and a finite log-probability.
TEST_P(Sampling, ExtremeLogits) {
  reserve(1);
  constexpr float kMost = std::numeric_limits<float>::max();
  Array logits(backend(), 1, 1, 5000);
  std::ranges::fill(logits.host.values, -kMost);
  logits.host.values[4321] = kMost;
  logits.host.values[4322] = 1e-40f;
  logits.put();
  for (SampleParams params : {SampleParams{}, {1.0f}, {1.0f, 10}, {1.0f, 0, 0.5f}}) {
    params.want_logprob = true;
    const Sampled out = sample(logits, {params})[0];
    EXPECT_EQ(out.token, 4321);
    EXPECT_EQ(out.logprob, 0);
  }
  std::vector<Scored> log_probs(1);
  backend().log_probs(logits.tensor, std::vector<std::int32_t>{0}, log_probs);
  EXPECT_EQ(log_probs[0].logprob, -kMost);
}

TEST_P(Sampling, TinyTemperatureIsGreedy) {
  reserve(1);
  Array logits(backend(), 1, 1, 5000);
  randomize(logits.host, 1, 4);
  logits.put();
  const std::vector<float>& values = logits.host.values;
  const auto largest = std::max_element(values.begin(), values.end()) - values.begin();
  for (const float temperature : {1e-4f, 1e-30f})
    for (const std::int32_t top_k : {0, 50})
      EXPECT_EQ(sample(logits, {{temperature, top_k, 1, 9, 9}})[0].token, largest) << temperature;
}

}  // namespace
}  // namespace ptrt::testing
