#include <numeric>

#include "ops/fixtures/sampling_fixture.h"

namespace ptrt::testing {
namespace {

class SamplingBits : public CpuOpTest {};
PTRT_EVERY_TARGET(SamplingBits);
// The scalar reference too; CUDA, where so many draws take long, chooses as the reference (sampling_test.cpp).
class SamplingDraws : public OpTest {};
INSTANTIATE_TEST_SUITE_P(Every, SamplingDraws, ::testing::ValuesIn(host_backends(op_targets())), param_name);

// The probability of each token (docs/SPEC.md, Sampling).
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

TEST_P(SamplingDraws, FollowTheDistribution) {
  constexpr std::int64_t kVocab = 40;
  constexpr int kRows = 50, kDraws = 20000;
  Activation one(1, 1, kVocab);
  randomize(one, 1.5f, 3);
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
      backend().sample(logits.tensor, params, out);
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

TEST_P(SamplingBits, BatchInvariant) {
  constexpr std::int64_t kRows = 33, kVocab = 9001;
  Activation logits(1, kRows, kVocab);
  randomize(logits, 2, 21);
  std::vector<SampleParams> params(kRows);
  std::vector<std::int32_t> targets(kRows), counts(kRows);
  const RandomEdits edits(kRows, kVocab, 4);
  for (std::size_t r = 0; r < params.size(); ++r) {
    params[r] = {static_cast<float>(r % 4) * 0.5f,
                 r % 3 == 0 ? 0 : static_cast<std::int32_t>(r),
                 r % 5 == 0 ? 0.7f : 1.0f,
                 r,
                 r * r,
                 true,
                 r % 7 == 0 ? 0.1f : 0.0f,
                 edits.of_row(r)};
    targets[r] = static_cast<std::int32_t>(r * 100);
    counts[r] = static_cast<std::int32_t>(r % 21);
  }
  std::vector<Sampled> alone(kRows);
  std::vector<Scored> alone_log_probs(kRows);
  std::vector<TopLogprobs> alone_top(kRows);
  const auto single = make_backend(1);
  for (std::size_t r = 0; r < params.size(); ++r) {
    const Tensor row = rows_of(logits.tensor, static_cast<std::int64_t>(r), 1);
    single->sample(row, {&params[r], 1}, {&alone[r], 1});
    single->log_probs(row, {&targets[r], 1}, {&alone_log_probs[r], 1});
    single->top_log_probs(row, {&counts[r], 1}, {&alone_top[r], 1});
  }
  for (const int threads : {1, 2, 3}) {
    std::vector<Sampled> out(kRows);
    std::vector<Scored> log_probs(kRows);
    std::vector<TopLogprobs> top(kRows);
    const auto backend = make_backend(threads);
    backend->sample(logits.tensor, params, out);
    backend->log_probs(logits.tensor, targets, log_probs);
    backend->top_log_probs(logits.tensor, counts, top);
    for (std::size_t r = 0; r < params.size(); ++r) {
      EXPECT_TRUE(same_bits(&log_probs[r].logprob, &alone_log_probs[r].logprob, 1)) << "row " << r;
      EXPECT_EQ(log_probs[r].greedy, alone_log_probs[r].greedy) << "row " << r;
      EXPECT_EQ(out[r].token, alone[r].token) << "row " << r;
      EXPECT_TRUE(same_bits(&out[r].logprob, &alone[r].logprob, 1)) << "row " << r;
      EXPECT_TRUE(std::equal(top[r].begin(), top[r].begin() + counts[r], alone_top[r].begin()))
          << "row " << r;
    }
  }
}

}  // namespace
}  // namespace ptrt::testing
