#include "ops/fixtures/attention_fixture.h"

namespace ptrt::testing {
namespace {

// Where keys, values or q are of other types than the products, and what is then rounded; the scalar
// reference too.
class AttentionRounding : public AttentionTest {
 protected:
  // Those that compute like one of kHostTypes.
  static constexpr AttentionTypes kOtherTypes[] = {
      {DType::float32, Compute::bfloat16}, {DType::float32, Compute::int8}, {DType::bfloat16, Compute::int8}};
};
class AttentionBits : public CpuOpTest {};

INSTANTIATE_TEST_SUITE_P(Every, AttentionRounding, ::testing::ValuesIn(host_backends(simd_targets())),
                         param_name);
INSTANTIATE_TEST_SUITE_P(Every, AttentionBits, ::testing::ValuesIn(simd_targets()), param_name);

// Scores so large that rounding q shows: with bfloat16 keys and products alone.
TEST_P(AttentionRounding, RoundsWhereTheTypesSaySo) {
  const AttentionShape shape{1, 1, 32, 0};
  const std::vector<std::int32_t> positions{59}, slots{0};
  const auto check_rounding = [&](const AttentionTypes& types) {
    Random random(12);
    backend_with({.threads = 1, .compute = types.compute});
    KvPages pages(backend(), shape, 1, 1, 60, types.kv, random);
    pages.fill({60}, random);
    const Array q(backend(), 1, 1, 32, DType::float32, random, 10);
    const Activation out = attend(shape, pages, q, positions, slots);
    const auto expected = [&](bool rounds) {
      return expected_head(shape, pages, q.host.values.data(), 0, 0, positions[0], 0, rounds);
    };
    const std::vector<double> right = expected(types.rounds()), wrong = expected(!types.rounds());
    expect_close(out.values, right, tolerance(types), types.name());
    double difference = 0;
    for (std::size_t j = 0; j < right.size(); ++j)
      difference = std::max(difference, std::abs(right[j] - wrong[j]));
    EXPECT_GT(difference, 3e-3) << types.name();
  };
  for (const AttentionTypes& types : kHostTypes) check_rounding(types);
  for (const AttentionTypes& types : kOtherTypes) check_rounding(types);
}

TEST_P(AttentionRounding, AgreesWithFloat64ForEveryType) {
  for (const AttentionTypes& types : kOtherTypes) {
    backend_with({.threads = 2, .compute = types.compute});
    check({4, 2, 48, 0}, 1, types);
  }
}

// All rows of slot 0, `chunk` at a time.
std::vector<float> prefill(Backend& backend, const AttentionShape& shape, const KvPages& pages,
                           const Activation& q, std::int64_t chunk) {
  const std::int64_t rows = q.tensor.rows;
  std::vector<std::int32_t> positions(static_cast<std::size_t>(rows)), slots(positions.size(), 0);
  std::iota(positions.begin(), positions.end(), 0);
  Activation out(q.tensor.tracks, rows, q.tensor.width);
  for (std::int64_t begin = 0; begin < rows; begin += chunk) {
    const std::int64_t n = std::min(chunk, rows - begin);
    const auto first = static_cast<std::size_t>(begin), count = static_cast<std::size_t>(n);
    const StepRows step = pages.rows(std::span<const std::int32_t>(positions).subspan(first, count),
                                     std::span<const std::int32_t>(slots).subspan(first, count));
    backend.attention(shape, rows_of(q.tensor, begin, n), step, KvPages::kLayer, pages.pool(),
                      rows_of(out.tensor, begin, n));
  }
  return out.values;
}

// A row's result is the same in a prefill of any chunking, in a decode step among others, and on any number
// of threads.
TEST_P(AttentionBits, BatchInvariant) {
  for (const AttentionShape& shape : thinned<AttentionShape>({{4, 4, 64, 0},
                                                              {4, 2, 40, 20},
                                                              {6, 1, 16, 3},
                                                              {3, 1, 10, 0},
                                                              {2, 2, 128, 50},
                                                              {7, 1, 256, 0},
                                                              {8, 2, 37, 100}}))
    for (const AttentionTypes& types : kHostTypes) {
      Random random(static_cast<unsigned>(shape.head_dim));
      constexpr std::int32_t kLength = 150;
      const auto single = make_backend({.threads = 1, .compute = types.compute});
      KvPages pages(*single, shape, 2, 2, kLength, types.kv, random);
      pages.fill({kLength, 50}, random);
      const Activation q(2, kLength, shape.heads * shape.head_dim, random);
      const std::vector<float> alone = prefill(*single, shape, pages, q, 1);
      for (const int threads : thinned<int>({1, 2, 3})) {
        const auto backend = make_backend({.threads = threads, .compute = types.compute});
        for (const std::int64_t chunk : thinned<std::int64_t>({1, 2, 3, 5, 7, 16, 31, 64, 100, 150})) {
          const std::vector<float> chunked = prefill(*backend, shape, pages, q, chunk);
          ASSERT_TRUE(same_bits(alone.data(), chunked.data(), static_cast<std::int64_t>(alone.size())))
              << types.name() << " head_dim " << shape.head_dim << " chunk " << chunk << " threads "
              << threads;
        }
      }
    }
}

// Long contexts, where threads share the pieces of one decode row.
TEST_P(AttentionBits, BatchInvariantInLongContexts) {
  constexpr std::int32_t kLength = kSanitized ? 1100 : 1700;
  for (const AttentionTypes& types : {kHostTypes[1], kHostTypes[2]})
    for (const AttentionShape& shape : {AttentionShape{3, 1, 32, 0}, {2, 2, 16, 700}, {1, 1, 64, 513}}) {
      const auto backend = [&](int threads) {
        return make_backend({.threads = threads, .compute = types.compute});
      };
      Random random(static_cast<unsigned>(shape.window));
      const auto single = backend(1);
      KvPages pages(*single, shape, 1, 1, kLength, types.kv, random);
      pages.fill({kLength}, random);
      const Activation q(1, kLength, shape.heads * shape.head_dim, random);
      const std::vector<float> whole = prefill(*single, shape, pages, q, kLength);
      for (const int threads : thinned<int>({1, 2, 3})) {
        const std::vector<float> alone = prefill(*backend(threads), shape, pages, q, 1);
        ASSERT_TRUE(same_bits(alone.data(), whole.data(), static_cast<std::int64_t>(alone.size())))
            << types.name() << " window " << shape.window << " threads " << threads;
      }
      for (const std::int64_t position : {511L, 512L, 600L, kLength - 1L}) {
        const std::vector<double> expected =
            expected_head(shape, pages, q.tensor.row(0, position), 0, 0, position, 0, types.rounds());
        for (std::int64_t j = 0; j < shape.head_dim; ++j)
          expect_close(whole[static_cast<std::size_t>(position * q.tensor.width + j)],
                       expected[static_cast<std::size_t>(j)], host_tolerance(types),
                       fmt::format("{} position {}", types.name(), position));
      }
    }
}

// A token whose key and value are NaN reaches the rows that see it, and no other row of the chunk.
TEST_P(AttentionBits, LeaveOutWhatTheRowDoesNotSee) {
  constexpr std::int32_t kLength = 90, kBroken = 50, kWindow = 20;
  const AttentionShape shape{3, 1, 24, kWindow};
  for (const AttentionTypes& types : kHostTypes) {
    Random random(5);
    const auto backend = make_backend({.threads = 2, .compute = types.compute});
    KvPages pages(*backend, shape, 1, 1, kLength, types.kv, random);
    pages.fill({kLength}, random);
    const Activation q(1, kLength, 3 * 24, random);
    const std::vector<float> sound = prefill(*backend, shape, pages, q, kLength);
    pages.poison(0, kBroken);
    const std::vector<float> broken = prefill(*backend, shape, pages, q, kLength);
    for (std::int64_t p = 0; p < kLength; ++p) {
      const float *a = sound.data() + p * q.tensor.width, *b = broken.data() + p * q.tensor.width;
      if (p >= kBroken && p < kBroken + kWindow)
        EXPECT_TRUE(std::isnan(b[0])) << p;
      else
        EXPECT_TRUE(same_bits(a, b, q.tensor.width)) << p;
    }
  }
}

}  // namespace
}  // namespace ptrt::testing
