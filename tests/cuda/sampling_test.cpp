#include "device_test.h"

namespace ptrt::testing {
namespace {

class DeviceSampling : public DeviceTest {
 protected:
  void reserve(std::int64_t rows) {
    WorkLimits limits;
    limits.rows = limits.logit_rows = rows;
    limits.sequences = limits.context = limits.heads = limits.head_dim = 1;
    backend().reserve(limits);
  }
};
PTRT_EVERY_DEVICE(DeviceSampling);

void fill(OnDevice& logits, float spread, unsigned seed) {
  Random random(seed);
  std::normal_distribution<float> normal(0, spread);
  for (float& logit : logits.host.values) logit = std::round(normal(random.engine()) * 64) / 64;  // ties
  logits.put();
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

TEST_P(DeviceSampling, ChoosesAsTheReference) {
  reserve(static_cast<std::int64_t>(kParams.size()));
  for (const std::int64_t vocab : {1, 3, 259, 2049, 5003})
    for (const float spread : {0.05f, 1.0f, 6.0f}) {
      const auto rows = static_cast<std::int64_t>(kParams.size());
      OnDevice logits(backend(), 1, rows, vocab, DType::float32);
      fill(logits, spread, static_cast<unsigned>(vocab));
      for (std::uint64_t position = 0; position < 2; ++position) {
        std::vector<SampleParams> params = kParams;
        for (std::size_t r = 0; r < params.size(); ++r) {
          params[r].seed = r * 0x123456789ULL;
          params[r].position = position;
          params[r].want_logprob = r % 2 == 0;
        }
        std::vector<Sampled> actual(params.size()), expected(params.size());
        backend().sample(logits.tensor, params, actual);
        ReferenceBackend().sample(logits.host.tensor, params, expected);
        for (std::size_t r = 0; r < params.size(); ++r) {
          EXPECT_EQ(actual[r].token, expected[r].token)
              << "vocabulary " << vocab << " spread " << spread << " temperature " << params[r].temperature
              << " top_k " << params[r].top_k << " top_p " << params[r].top_p << " position " << position;
          EXPECT_NEAR(actual[r].logprob, expected[r].logprob, 2e-5);
        }
      }
    }
}

TEST_P(DeviceSampling, LogProbabilities) {
  reserve(4);
  for (const std::int64_t vocab : {1, 5, 259, 3000, 70001}) {
    OnDevice logits(backend(), 1, 4, vocab, DType::float32);
    fill(logits, 4, static_cast<unsigned>(vocab));
    for (std::int64_t i = 0; i < vocab; ++i) logits.host.tensor.row(0, 3)[i] += 2000;  // far from zero
    logits.put();
    const std::vector<std::int32_t> targets{0, static_cast<std::int32_t>(vocab - 1),
                                            static_cast<std::int32_t>(vocab / 2),
                                            static_cast<std::int32_t>(vocab / 3)};
    std::vector<float> actual(4), expected(4);
    backend().log_probs(logits.tensor, targets, actual);
    ReferenceBackend().log_probs(logits.host.tensor, targets, expected);
    expect_near(actual, expected, 1e-5, "log-probabilities");
  }
}

// Of equal logits in several parts of the vocabulary the lowest id wins, and a part of -∞ adds nothing.
TEST_P(DeviceSampling, PartsOfALargeVocabulary) {
  constexpr std::int64_t kVocab = 70001;  // more than 32 parts of the least size
  reserve(3);
  OnDevice logits(backend(), 1, 3, kVocab, DType::float32);
  fill(logits, 1, 4);
  for (const std::int64_t id : {69999, 2200, 41000}) logits.host.tensor.row(0, 0)[id] = 20;
  std::fill_n(logits.host.tensor.row(0, 1) + 4000, 30000, -INFINITY);
  logits.host.tensor.row(0, 2)[kVocab - 1] = 30;
  logits.put();
  std::vector<Sampled> actual(3), expected(3);
  // Top_k of 6000 and top_p of 0.95 keep more than the candidates that have a place of their own.
  for (SampleParams params : std::vector<SampleParams>{
           {}, {0.8f}, {1.0f, 50}, {1.0f, 0, 0.5f}, {1.0f, 6000, 0.3f}, {0.9f, 0, 0.95f}, {3.0f, 0, 0.95f}})
    for (std::uint64_t position = 0; position < (params.top_k == 0 && params.top_p == 1 ? 2 : 1);
         ++position) {
      params.position = position;
      params.want_logprob = true;
      const std::vector<SampleParams> all(3, params);
      backend().sample(logits.tensor, all, actual);
      ReferenceBackend().sample(logits.host.tensor, all, expected);
      for (std::size_t r = 0; r < 3; ++r) {
        EXPECT_EQ(actual[r].token, expected[r].token)
            << "row " << r << " temperature " << params.temperature << " top_k " << params.top_k << " top_p "
            << params.top_p;
        EXPECT_NEAR(actual[r].logprob, expected[r].logprob, 2e-5);
      }
      if (params.temperature == 0) {
        EXPECT_EQ(actual[0].token, 2200);
      }
    }
}

// More tokens than have a place of their own, all at one distance from the largest.
TEST_P(DeviceSampling, CutsAmongEqualLogits) {
  constexpr std::int64_t kVocab = 9001;
  reserve(1);
  OnDevice logits(backend(), 1, 1, kVocab, DType::float32);
  std::ranges::fill(logits.host.values, 1.5f);
  logits.put();
  for (SampleParams params : {SampleParams{1.0f, 0, 0.5f}, {1.0f, 0, 0.95f}, {0.5f, 5000, 0.9f}})
    for (params.position = 0; params.position < 3; ++params.position) {
      Sampled actual{-1, 0}, expected{-2, 0};
      backend().sample(logits.tensor, {&params, 1}, {&actual, 1});
      ReferenceBackend().sample(logits.host.tensor, {&params, 1}, {&expected, 1});
      EXPECT_EQ(actual.token, expected.token) << "top_k " << params.top_k << " top_p " << params.top_p;
    }
}

// Whatever the logits are, a token of the vocabulary comes out.
TEST_P(DeviceSampling, SurvivesBadLogits) {
  constexpr std::int64_t kVocab = 700;
  reserve(1);
  for (const float bad : {NAN, INFINITY, -INFINITY})
    for (const bool everywhere : {false, true}) {
      OnDevice logits(backend(), 1, 1, kVocab, DType::float32);
      fill(logits, 1, 2);
      for (std::size_t i = 0; i < logits.host.values.size(); i += everywhere ? 1 : 7)
        logits.host.values[i] = bad;
      logits.put();
      for (const SampleParams& params :
           {SampleParams{}, {1.0f}, {1.0f, 10}, {1.0f, 0, 0.5f}, {1e-40f}, {1e30f}}) {
        Sampled out{-1, 0};
        backend().sample(logits.tensor, {&params, 1}, {&out, 1});
        EXPECT_GE(out.token, 0);
        EXPECT_LT(out.token, kVocab);
      }
    }
}

}  // namespace
}  // namespace ptrt::testing
