#include <set>

#include "ops/fixtures/sampling_fixture.h"

namespace ptrt::testing {
namespace {

class SamplingEdits : public OpTest {
 protected:
  void reserve(std::int64_t rows, std::int64_t vocab) {
    backend().reserve({.rows = rows,
                       .logit_rows = rows,
                       .sequences = 1,
                       .context = 1,
                       .heads = 1,
                       .head_dim = 1,
                       .vocab = vocab});
  }
  std::vector<Sampled> sample(const Array& logits, const std::vector<SampleParams>& params) {
    std::vector<Sampled> out(params.size(), Sampled{-1, 0});
    backend().sample(logits.tensor, params, out);
    return out;
  }
};
class SamplingEditsAsReference : public SamplingEdits {};
PTRT_EVERY_BACKEND_IN_ONE_TYPE(SamplingEdits);
INSTANTIATE_TEST_SUITE_P(Every, SamplingEditsAsReference,
                         ::testing::ValuesIn(without_reference(backends_on(op_targets(), false))),
                         param_name);

// The edited logits in float64, by the words of logit_edits.h; -infinity: not allowed.
std::vector<double> edited_in_float64(const float* logits, std::int64_t vocab, const LogitEdits& edits) {
  std::vector<double> x(logits, logits + vocab);
  for (const TokenEdit& edit : edits.tokens) {
    double& logit = x[static_cast<std::size_t>(edit.token)];
    logit += double{edit.bias};
    logit = logit > 0 ? logit / double{edit.repetition_penalty} : logit * double{edit.repetition_penalty};
    logit -= double{edit.subtracted};
  }
  for (std::int64_t id = 0; id < vocab; ++id)
    if (!edits.allows(id)) x[static_cast<std::size_t>(id)] = -INFINITY;
  return x;
}

TEST_P(SamplingEdits, GreedyTakesTheLargestEditedLogit) {
  constexpr std::int64_t kRows = 12;
  for (const std::int64_t vocab : {1, 3, 64, 259, 5003}) {
    reserve(kRows, vocab);
    Array logits(backend(), 1, kRows, vocab);
    randomize(logits.host, 2, static_cast<unsigned>(vocab));
    logits.put();
    const RandomEdits edits(kRows, vocab, 5);
    std::vector<SampleParams> params(kRows);
    for (std::size_t r = 0; r < params.size(); ++r) {
      params[r].want_logprob = true;
      params[r].edits = edits.of_row(r);
    }
    const std::vector<Sampled> out = sample(logits, params);
    for (std::size_t r = 0; r < params.size(); ++r) {
      const float* row = logits.host.tensor.row(0, static_cast<std::int64_t>(r));
      const std::vector<double> edited =
          edited_in_float64(row, vocab, params[r].edits != nullptr ? *params[r].edits : LogitEdits{});
      const auto token = static_cast<std::size_t>(out[r].token);
      EXPECT_NEAR(edited[token], *std::ranges::max_element(edited), 1e-5)
          << "vocabulary " << vocab << " row " << r;
      const std::vector<double> p = softmax(std::vector<double>(row, row + vocab));
      EXPECT_NEAR(out[r].logprob, std::log(p[token]), 2e-5) << "of the logits without edits";
    }
    EXPECT_EQ(logits.get().values, logits.host.values) << "the logits stay as they are";
  }
}

// Draws, with and without cuts; several rows without edits between the others. On CUDA the edited rows are
// more than one group.
TEST_P(SamplingEditsAsReference, EveryParameter) {
  const std::vector<SampleParams> settings{{},
                                           {1.0f},
                                           {0.7f, 5},
                                           {1.0f, 300},
                                           {1.5f, 0, 0.6f},
                                           {0.9f, 20, 0.8f},
                                           {1.0f, 0, 1, 0, 0, false, 0.05f},
                                           {2.0f, 0, 0.9f, 0, 0, true, 0.2f},
                                           {1.0f, 7, 1, 0, 0, true, 0.01f},
                                           {1.0f, 0, 1, 0, 0, true, 1.0f},
                                           {1e30f, 0, 0.5f}};
  for (const std::int64_t vocab : {1, 70, 259, 2500, 9001}) {
    const std::int64_t rows = vocab == 70 ? 150 : 40;
    reserve(rows, vocab);
    Array logits(backend(), 1, rows, vocab);
    randomize(logits.host, 1.5f, static_cast<unsigned>(vocab), true);
    logits.put();
    const RandomEdits edits(rows, vocab, 9);
    std::vector<SampleParams> params;
    for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
      params.push_back(settings[r % settings.size()]);
      params[r].seed = r * 77;
      params[r].edits = edits.of_row(r);
    }
    const std::vector<Sampled> actual = sample(logits, params);
    std::vector<Sampled> expected(params.size());
    ReferenceBackend().sample(logits.host.tensor, params, expected);
    for (std::size_t r = 0; r < params.size(); ++r) {
      EXPECT_EQ(actual[r].token, expected[r].token) << "vocabulary " << vocab << " row " << r;
      EXPECT_NEAR(actual[r].logprob, expected[r].logprob, 2e-5);
    }
  }
}

// Which tokens come is known: the likelier they are, the lower min_p may be.
TEST_P(SamplingEdits, MinPKeepsWhatIsLikelyEnough) {
  constexpr std::int64_t kVocab = 5000, kRows = 60;
  reserve(kRows, kVocab);
  Array logits(backend(), 1, kRows, kVocab);
  for (std::int64_t r = 0; r < kRows; ++r)
    for (std::int64_t id = 0; id < kVocab; ++id)  // e^-distance of the likeliest, one token each
      logits.host.tensor.row(0, r)[(id * 7 + 3) % kVocab] = 5 - 0.5f * static_cast<float>(id);
  logits.put();
  for (const float temperature : {0.5f, 1.0f, 4.0f})
    for (const float min_p : {1.0f, 0.7f, 0.3f, 0.01f}) {
      std::vector<SampleParams> params(kRows);
      for (std::size_t r = 0; r < params.size(); ++r)
        params[r] = {.temperature = temperature, .seed = r, .min_p = min_p};
      std::set<std::int32_t> seen;
      for (const Sampled& sampled : sample(logits, params)) seen.insert(sampled.token);
      const auto kept = static_cast<std::int32_t>(-std::log(min_p) * temperature / 0.5f) + 1;
      for (const std::int32_t token : seen) {
        const std::int32_t rank = (token - 3 + 5000) * 2143 % 5000;  // 7 · 2143 = 1 modulo 5000
        EXPECT_LT(rank, kept) << "min_p " << min_p << " temperature " << temperature;
      }
      EXPECT_GE(std::ssize(seen), std::min(kept, 3)) << "all of them can come";
    }
}

TEST_P(SamplingEdits, NoTokenIsAllowed) {
  constexpr std::int64_t kVocab = 130;
  reserve(4, kVocab);
  Array logits(backend(), 1, 4, kVocab);
  randomize(logits.host, 1, 3);
  logits.host.tensor.row(0, 2)[7] = NAN;
  logits.put();
  const std::vector<std::uint64_t> none(mask_words(kVocab)), one{0, 1ull << 20, 0};
  const LogitEdits nothing{{}, none}, single{{}, one};
  for (const float temperature : {0.0f, 1.0f}) {
    const SampleParams base{.temperature = temperature, .want_logprob = true};
    std::vector<SampleParams> params(4, base);
    params[0].edits = params[2].edits = &nothing;
    params[1].edits = &single;
    const std::vector<Sampled> out = sample(logits, params);
    EXPECT_TRUE(out[0].is_none_allowed());
    EXPECT_TRUE(out[0].finite());
    EXPECT_EQ(out[0].token, 0) << "it may be fed";
    EXPECT_EQ(out[1].token, 84);
    EXPECT_FALSE(out[1].is_none_allowed());
    EXPECT_FALSE(out[2].finite()) << "the model's fault goes first";
    EXPECT_FALSE(out[3].is_none_allowed());
  }
}

// The largest penalties keep logits finite, and the order of what they leave.
TEST_P(SamplingEdits, ExtremeEdits) {
  constexpr float kMost = std::numeric_limits<float>::max();
  reserve(1, 100);
  Array logits(backend(), 1, 1, 100);
  std::ranges::fill(logits.host.values, -kMost);
  logits.host.values[40] = kMost;
  logits.put();
  const std::vector<TokenEdit> edits{{40, 0, 1e-30f, 0}, {50, kMost, 1, 0}, {60, 0, 1e30f, kMost}};
  const LogitEdits all{edits, {}};
  for (const float temperature : {0.0f, 1.0f})
    EXPECT_EQ(sample(logits, {{.temperature = temperature, .edits = &all}})[0].token, 40);
}

std::vector<std::int32_t> by_logit(const float* row, std::int64_t vocab) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(vocab));
  for (std::size_t id = 0; id < order.size(); ++id) order[id] = static_cast<std::int32_t>(id);
  std::ranges::stable_sort(order, [&](std::int32_t a, std::int32_t b) { return row[a] > row[b]; });
  return order;
}

TEST_P(SamplingEdits, TopLogprobs) {
  constexpr std::size_t kRows = 5;
  for (const std::int64_t vocab : {1, 20, 259, 9000, 70001}) {
    if (vocab > 10000 && on_cuda() && cuda_kind() == CudaKind::emulated) continue;  // it takes too long
    reserve(kRows, vocab);
    Array logits(backend(), 1, kRows, vocab);
    randomize(logits.host, 1, static_cast<unsigned>(vocab), true);  // with equal ones
    if (vocab > 20) logits.host.tensor.row(0, 3)[vocab / 2] = -INFINITY;
    logits.put();
    const auto most = static_cast<std::int32_t>(std::min(vocab, kMaxTopLogprobs));
    const std::vector<std::int32_t> counts{most, 0, 1, most, std::min(most, 7)};
    std::vector<TopLogprobs> top(kRows);
    backend().top_log_probs(logits.tensor, counts, top);
    std::vector<std::vector<std::int32_t>> orders;
    for (std::size_t r = 0; r < kRows; ++r)
      orders.push_back(by_logit(logits.host.tensor.row(0, static_cast<std::int64_t>(r)), vocab));
    for (std::size_t i = 0; i < static_cast<std::size_t>(most); ++i) {
      std::vector<std::int32_t> targets;
      for (const std::vector<std::int32_t>& order : orders) targets.push_back(order[i]);
      std::vector<Scored> scored(kRows);
      backend().log_probs(logits.tensor, targets, scored);
      for (std::size_t r = 0; r < kRows; ++r) {
        if (i >= static_cast<std::size_t>(counts[r])) continue;
        const TokenLogprob& one = top[r].at(i);
        if (std::isnan(scored[r].logprob)) {
          EXPECT_TRUE(r == 3 && std::isnan(one.logprob));
          continue;
        }
        EXPECT_EQ(one.token, targets[r]) << "vocabulary " << vocab << " row " << r << " place " << i;
        EXPECT_TRUE(same_bits(&one.logprob, &scored[r].logprob, 1)) << "those of a given token";
      }
    }
  }
}

// What is queued is taken later, with alternatives, while the next call is in flight; the edits may change at once.
TEST_P(SamplingEdits, QueuedCalls) {
  constexpr std::int64_t kRows = 3, kVocab = 300;
  reserve(kRows, kVocab);
  Array logits(backend(), 1, kRows, kVocab);
  randomize(logits.host, 1, 8);
  logits.put();
  std::vector<std::vector<Sampled>> expected;
  std::vector<std::uint64_t> mask(mask_words(kVocab));
  std::vector<TokenEdit> biases(1);
  const LogitEdits edits{biases, mask};
  std::vector<SampleParams> params(kRows, SampleParams{.temperature = 1, .want_logprob = true});
  params[1].edits = &edits;
  const std::vector<std::int32_t> counts{0, 4, 2};
  const int calls = backend().traits().steps_ahead + 1;
  for (int call = 0; call < calls; ++call) {
    std::ranges::fill(mask, 0x123456789abcdefull << call);
    biases[0] = {call, 3, 1, 0};
    expected.push_back(sample(logits, params));
  }
  for (int call = 0; call < calls; ++call) {
    std::ranges::fill(mask, 0x123456789abcdefull << call);
    biases[0] = {call, 3, 1, 0};
    backend().queue_sample(logits.tensor, params, counts);
  }
  std::ranges::fill(mask, 0);
  biases[0].bias = 1000;
  for (int call = 0; call < calls; ++call) {
    std::vector<Sampled> out(kRows);
    std::vector<TopLogprobs> top(kRows), expected_top(kRows);
    backend().take_sampled(out, top);
    for (std::size_t r = 0; r < out.size(); ++r) {
      EXPECT_EQ(out[r].token, expected[static_cast<std::size_t>(call)][r].token);
      EXPECT_EQ(out[r].logprob, expected[static_cast<std::size_t>(call)][r].logprob);
    }
    if (call > 0) continue;
    for (std::size_t r = 0; r < top.size(); ++r) {
      ReferenceBackend().top_log_probs(logits.host.tensor, counts, expected_top);
      for (std::size_t i = 0; i < static_cast<std::size_t>(counts[r]); ++i) {
        EXPECT_EQ(top[r].at(i).token, expected_top[r].at(i).token);
        EXPECT_NEAR(top[r].at(i).logprob, expected_top[r].at(i).logprob, 2e-5);
      }
    }
  }
}

}  // namespace
}  // namespace ptrt::testing
