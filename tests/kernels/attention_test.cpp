#include "kernels/base/scalar_types.h"
#include "op_test.h"

namespace ptrt::testing {
namespace {

class AttentionOp : public OpTest {};
class AttentionBits : public CpuOpTest {};
// With and without the bfloat16 products: attention has a kernel of its own for them.
std::vector<std::string> attention_backends() {
  std::vector<std::string> names = simd_targets();
  names.push_back(kReference);
  return names;
}
INSTANTIATE_TEST_SUITE_P(Every, AttentionOp, ::testing::ValuesIn(attention_backends()), param_name);
INSTANTIATE_TEST_SUITE_P(Every, AttentionBits, ::testing::ValuesIn(simd_targets()), param_name);

// Types of keys and values and of the products.
struct Types {
  DType kv;
  Compute compute;
  bool rounds() const { return kv == DType::bfloat16 && compute != Compute::float32; }
  std::string name() const { return fmt::format("{} kv, {} products", to_string(kv), to_string(compute)); }
};
constexpr Types kTypes[] = {{DType::float32, Compute::float32},
                            {DType::bfloat16, Compute::float32},
                            {DType::bfloat16, Compute::bfloat16}};
// Those that compute like one of the above.
constexpr Types kOtherTypes[] = {
    {DType::float32, Compute::bfloat16}, {DType::float32, Compute::int8}, {DType::bfloat16, Compute::int8}};

// Sequences whose pages lie scattered in a pool with random keys and values; places no sequence owns hold NaN
// and infinities.
class Cache {
 public:
  Cache(const AttentionShape& shape, std::int64_t tracks, const std::vector<std::int32_t>& lengths,
        DType dtype, Random& random)
      : Cache(shape, tracks, lengths, dtype, random, random) {}
  Cache(const AttentionShape& shape, std::int64_t tracks, const std::vector<std::int32_t>& lengths,
        DType dtype, Random& order, Random& random)
      : stride_(0) {
    for (const std::int32_t length : lengths) stride_ = std::max<std::int64_t>(stride_, (length + 15) / 16);
    const auto slots = static_cast<std::int64_t>(lengths.size());
    std::vector<std::int32_t> pages(static_cast<std::size_t>(stride_ * slots + 3));
    for (std::size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<std::int32_t>(i);
    std::shuffle(pages.begin(), pages.end(), order.engine());
    page_table_.assign(pages.begin(), pages.end() - 3);
    pool_ = {nullptr,        dtype,         tracks, kLayers, static_cast<std::int64_t>(pages.size()),
             shape.kv_heads, shape.head_dim};
    memory_.resize(pool_.bytes());
    pool_.data = memory_.data();
    for (std::int64_t i = 0; i < pool_.elements(); ++i) put(i, i % 2 == 0 ? NAN : INFINITY);
    for (std::int64_t t = 0; t < tracks; ++t)
      for (std::int64_t slot = 0; slot < slots; ++slot)
        for (std::int64_t p = 0; p < lengths[static_cast<std::size_t>(slot)]; ++p)
          for (std::int64_t h = 0; h < shape.kv_heads; ++h)
            for (std::int64_t j = 0; j < shape.head_dim; ++j) {
              put(key_at(t, slot, p, h, j), random.uniform(-3, 3));
              put(value_at(t, slot, p, h, j), random.uniform());
            }
  }
  // As stored: of a bfloat16 pool what is left after rounding.
  double key(std::int64_t t, std::int64_t slot, std::int64_t position, std::int64_t head,
             std::int64_t j) const {
    return get(key_at(t, slot, position, head, j));
  }
  double value(std::int64_t t, std::int64_t slot, std::int64_t position, std::int64_t head,
               std::int64_t j) const {
    return get(value_at(t, slot, position, head, j));
  }
  // Makes a token's key and value NaN, as a model that went out of range would.
  void poison(std::int64_t slot, std::int64_t position) {
    for (std::int64_t t = 0; t < pool_.tracks; ++t)
      for (std::int64_t h = 0; h < pool_.kv_heads; ++h)
        for (std::int64_t j = 0; j < pool_.head_dim; ++j) {
          put(key_at(t, slot, position, h, j), NAN);
          put(value_at(t, slot, position, h, j), NAN);
        }
  }
  const KvPool& pool() const { return pool_; }
  StepRows rows(std::span<const std::int32_t> positions, std::span<const std::int32_t> slots) const {
    return {positions, slots, page_table_, stride_};
  }
  static constexpr std::int64_t kLayers = 2, kLayer = 1;

 private:
  // Element of the pool: [page][track][layer][keys, values][head] and then, float32, keys [head_dim][16] and
  // values [16][head_dim], bfloat16, keys [head_dim / 2][16][2], an odd one's last element as [16] behind
  // them, and values [8][head_dim][2].
  std::int64_t head_at(std::int64_t t, std::int64_t slot, std::int64_t position, std::int64_t part,
                       std::int64_t head) const {
    const std::int64_t page = page_table_[static_cast<std::size_t>(slot * stride_ + position / 16)];
    const std::int64_t layer = (page * pool_.tracks + t) * kLayers + kLayer;
    return ((layer * 2 + part) * pool_.kv_heads + head) * 16 * pool_.head_dim;
  }
  std::int64_t key_at(std::int64_t t, std::int64_t slot, std::int64_t position, std::int64_t head,
                      std::int64_t j) const {
    const bool pairs = pool_.dtype == DType::bfloat16 && j < pool_.head_dim / 2 * 2;
    return head_at(t, slot, position, 0, head) +
           (pairs ? j / 2 * 32 + position % 16 * 2 + j % 2 : j * 16 + position % 16);
  }
  std::int64_t value_at(std::int64_t t, std::int64_t slot, std::int64_t position, std::int64_t head,
                        std::int64_t j) const {
    const std::int64_t place = position % 16;
    return head_at(t, slot, position, 1, head) + (pool_.dtype == DType::bfloat16
                                                      ? place / 2 * 2 * pool_.head_dim + 2 * j + place % 2
                                                      : place * pool_.head_dim + j);
  }
  void put(std::int64_t element, float value) {
    if (pool_.dtype == DType::float32)
      reinterpret_cast<float*>(pool_.data)[element] = value;
    else
      reinterpret_cast<std::uint16_t*>(pool_.data)[element] = to_bfloat16(value);
  }
  double get(std::int64_t element) const {
    if (pool_.dtype == DType::float32) return double{reinterpret_cast<const float*>(pool_.data)[element]};
    return double{from_bfloat16(reinterpret_cast<const std::uint16_t*>(pool_.data)[element])};
  }

  std::int64_t stride_;
  std::vector<std::int32_t> page_table_;
  std::vector<std::byte> memory_;
  KvPool pool_;
};

double rounded(double value, bool rounds) {
  return rounds ? double{from_bfloat16(to_bfloat16(static_cast<float>(value)))} : value;
}

// With `rounds`, q · scale and the softmax weights are rounded to bfloat16 before they are multiplied.
std::vector<double> expected_head(const AttentionShape& shape, const Cache& cache, const float* q,
                                  std::int64_t track, std::int64_t slot, std::int64_t position,
                                  std::int64_t kv_head, bool rounds) {
  const std::int64_t first = shape.window == 0 ? 0 : std::max<std::int64_t>(0, position - shape.window + 1);
  std::vector<double> scores, query(q, q + shape.head_dim);
  for (double& element : query)
    element = rounded(element / std::sqrt(static_cast<double>(shape.head_dim)), rounds);
  for (std::int64_t p = first; p <= position; ++p) {
    scores.push_back(0);
    for (std::int64_t j = 0; j < shape.head_dim; ++j)
      scores.back() += query[static_cast<std::size_t>(j)] * cache.key(track, slot, p, kv_head, j);
  }
  const double largest = *std::max_element(scores.begin(), scores.end());
  std::vector<double> sum(static_cast<std::size_t>(shape.head_dim));
  double total = 0;
  for (std::int64_t p = first; p <= position; ++p) {
    const double exact = std::exp(scores[static_cast<std::size_t>(p - first)] - largest);
    const double weight = rounded(exact, rounds);
    total += exact;
    for (std::int64_t j = 0; j < shape.head_dim; ++j)
      sum[static_cast<std::size_t>(j)] += weight * cache.value(track, slot, p, kv_head, j);
  }
  for (double& element : sum) element /= total;
  return sum;
}

// The fast kernels round a weight against the largest score of the tokens so far, not of all.
double tolerance(const Types& types) {
  return types.rounds() ? 1e-3 : 1e-5;
}

void check(Backend& backend, const AttentionShape& shape, std::int64_t tracks, const Types& types) {
  Random random(static_cast<unsigned>(shape.head_dim + shape.window));
  const std::vector<std::int32_t> lengths{150, 1, 16, 33};
  const Cache cache(shape, tracks, lengths, types.kv, random);
  // A whole prefill, decode rows of the others, and a chunk that begins inside a page.
  std::vector<std::int32_t> positions, slots;
  for (std::int32_t p = 0; p < 150; ++p) positions.push_back(p), slots.push_back(0);
  for (const std::int32_t slot : {1, 2, 3})
    positions.push_back(lengths[static_cast<std::size_t>(slot)] - 1), slots.push_back(slot);
  for (std::int32_t p = 11; p < 30; ++p) positions.push_back(p), slots.push_back(3);
  const auto rows = static_cast<std::int64_t>(positions.size());
  const Activation q(tracks, rows, shape.heads * shape.head_dim, random);
  Activation out(tracks, rows, shape.heads * shape.head_dim);
  backend.attention(shape, q.tensor, cache.rows(positions, slots), Cache::kLayer, cache.pool(), out.tensor);
  for (std::int64_t t = 0; t < tracks; ++t)
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        const auto i = static_cast<std::size_t>(r);
        const std::vector<double> expected =
            expected_head(shape, cache, q.tensor.row(t, r) + h * shape.head_dim, t, slots[i], positions[i],
                          h / (shape.heads / shape.kv_heads), types.rounds());
        for (std::int64_t j = 0; j < shape.head_dim; ++j)
          expect_close(out.at(t, r, h * shape.head_dim + j), expected[static_cast<std::size_t>(j)],
                       tolerance(types),
                       fmt::format("{}: head_dim {} window {} row {} head {}", types.name(), shape.head_dim,
                                   shape.window, r, h));
      }
}

TEST_P(AttentionOp, AgreesWithFloat64ForEveryHeadSize) {
  for (const Types& types : kTypes) {
    const auto backend = make_backend({.threads = 2, .compute = types.compute});
    for (const std::int64_t head_dim : thinned<std::int64_t>({1, 10, 16, 32, 37, 64, 80, 96, 128, 256}))
      check(*backend, {4, 2, head_dim, 0}, 2, types);
  }
}

TEST_P(AttentionOp, AgreesWithFloat64ForEveryWindow) {
  for (const Types& types : kTypes) {
    const auto backend = make_backend({.threads = 2, .compute = types.compute});
    for (const std::int64_t window : {1, 2, 7, 15, 16, 17, 31, 32, 40, 63, 64, 65, 70, 128, 149, 150, 500})
      check(*backend, {2, 2, 24, window}, 1, types);
  }
}

TEST_P(AttentionOp, AgreesWithFloat64ForEveryGrouping) {
  for (const Types& types : kTypes) {
    const auto backend = make_backend({.threads = 2, .compute = types.compute});
    for (const auto& [heads, kv_heads] :
         {std::pair{1, 1}, {3, 1}, {5, 1}, {8, 1}, {6, 2}, {6, 6}, {20, 1}, {40, 2}})
      check(*backend, {heads, kv_heads, 20, 21}, 1, types);
  }
}

TEST_P(AttentionOp, AgreesWithFloat64ForEveryType) {
  for (const Types& types : kOtherTypes)
    check(*make_backend({.threads = 2, .compute = types.compute}), {4, 2, 48, 0}, 1, types);
}

// Scores so large that rounding q shows: with bfloat16 keys and products alone.
TEST_P(AttentionOp, RoundsWhereTheTypesSaySo) {
  const AttentionShape shape{1, 1, 32, 0};
  const std::vector<std::int32_t> lengths{60}, positions{59}, slots{0};
  const auto check_all = [&](const Types& types) {
    Random random(12);
    const Cache cache(shape, 1, lengths, types.kv, random);
    Activation q(1, 1, 32, random), out(1, 1, 32);
    for (float& element : q.values) element *= 10;
    make_backend({.threads = 1, .compute = types.compute})
        ->attention(shape, q.tensor, cache.rows(positions, slots), Cache::kLayer, cache.pool(), out.tensor);
    const auto expected = [&](bool rounds) {
      return expected_head(shape, cache, q.values.data(), 0, 0, positions[0], 0, rounds);
    };
    const std::vector<double> right = expected(types.rounds()), wrong = expected(!types.rounds());
    double difference = 0;
    for (std::size_t j = 0; j < right.size(); ++j) {
      expect_close(out.values[j], right[j], tolerance(types), types.name());
      difference = std::max(difference, std::abs(right[j] - wrong[j]));
    }
    EXPECT_GT(difference, 3e-3) << types.name();
  };
  for (const Types& types : kTypes) check_all(types);
  for (const Types& types : kOtherTypes) check_all(types);
}

// Large scores: the running maximum must keep everything in range.
void check_large_scores(Backend& backend, DType kv) {
  Random random(8);
  const AttentionShape shape{1, 1, 16, 0};
  const std::vector<std::int32_t> lengths{40}, positions{39}, slots{0};
  const Cache cache(shape, 1, lengths, kv, random);
  Activation q(1, 1, 16, random), out(1, 1, 16);
  for (float& element : q.values) element *= 1000;
  backend.attention(shape, q.tensor, cache.rows(positions, slots), Cache::kLayer, cache.pool(), out.tensor);
  std::int64_t largest = 0;
  double largest_score = -INFINITY;
  for (std::int64_t p = 0; p < 40; ++p) {
    double score = 0;
    for (std::int64_t j = 0; j < 16; ++j) score += double{q.at(0, 0, j)} * cache.key(0, 0, p, 0, j);
    if (score > largest_score) largest = p, largest_score = score;
  }
  for (std::int64_t j = 0; j < 16; ++j) EXPECT_NEAR(out.at(0, 0, j), cache.value(0, 0, largest, 0, j), 1e-5);
}

TEST_P(AttentionOp, SurvivesLargeScores) {
  for (const Types& types : kTypes)
    check_large_scores(*make_backend({.threads = 2, .compute = types.compute}), types.kv);
}

// All rows of slot 0, `chunk` at a time.
std::vector<float> prefill(Backend& backend, const AttentionShape& shape, const Cache& cache,
                           const Activation& q, std::int64_t chunk) {
  const std::int64_t rows = q.tensor.rows, width = q.tensor.width, tracks = q.tensor.tracks;
  std::vector<std::int32_t> positions, slots(static_cast<std::size_t>(rows), 0);
  for (std::int32_t p = 0; p < rows; ++p) positions.push_back(p);
  Activation out(tracks, rows, width);
  for (std::int64_t begin = 0; begin < rows; begin += chunk) {
    const std::int64_t n = std::min(chunk, rows - begin);
    const auto first = static_cast<std::size_t>(begin), count = static_cast<std::size_t>(n);
    const Tensor chunk_q{q.tensor.row(0, begin), tracks, n, width, q.tensor.track_stride};
    const Tensor chunk_out{out.tensor.row(0, begin), tracks, n, width, out.tensor.track_stride};
    const StepRows step = cache.rows(std::span<const std::int32_t>(positions).subspan(first, count),
                                     std::span<const std::int32_t>(slots).subspan(first, count));
    backend.attention(shape, chunk_q, step, Cache::kLayer, cache.pool(), chunk_out);
  }
  return out.values;
}

// A row's result is the same in a prefill of any chunking, in a decode step among others, and on any number
// of threads.
TEST_P(AttentionBits, HangOnTheRowAlone) {
  for (const AttentionShape& shape : thinned<AttentionShape>({{4, 4, 64, 0},
                                                              {4, 2, 40, 20},
                                                              {6, 1, 16, 3},
                                                              {3, 1, 10, 0},
                                                              {2, 2, 128, 50},
                                                              {7, 1, 256, 0},
                                                              {8, 2, 37, 100}}))
    for (const Types& types : kTypes) {
      Random random(static_cast<unsigned>(shape.head_dim));
      constexpr std::int32_t kLength = 150;
      const Cache cache(shape, 2, {kLength, 50}, types.kv, random);
      const Activation q(2, kLength, shape.heads * shape.head_dim, random);
      const std::vector<float> alone =
          prefill(*make_backend({.threads = 1, .compute = types.compute}), shape, cache, q, 1);
      for (const int threads : thinned<int>({1, 2, 3})) {
        const auto backend = make_backend({.threads = threads, .compute = types.compute});
        for (const std::int64_t chunk : thinned<std::int64_t>({1, 2, 3, 5, 7, 16, 31, 64, 100, 150})) {
          const std::vector<float> chunked = prefill(*backend, shape, cache, q, chunk);
          ASSERT_TRUE(same_bits(alone.data(), chunked.data(), static_cast<std::int64_t>(alone.size())))
              << types.name() << " head_dim " << shape.head_dim << " chunk " << chunk << " threads "
              << threads;
        }
      }
    }
}

// Long contexts, where threads share the pieces of one decode row.
TEST_P(AttentionBits, HangOnTheRowAloneInLongContexts) {
  constexpr std::int32_t kLength = kSanitized ? 1100 : 1700;
  for (const Types& types : {kTypes[1], kTypes[2]})
    for (const AttentionShape& shape : {AttentionShape{3, 1, 32, 0}, {2, 2, 16, 700}, {1, 1, 64, 513}}) {
      const auto backend = [&](int threads) {
        return make_backend({.threads = threads, .compute = types.compute});
      };
      Random random(static_cast<unsigned>(shape.window));
      const Cache cache(shape, 1, {kLength}, types.kv, random);
      const Activation q(1, kLength, shape.heads * shape.head_dim, random);
      const std::vector<float> whole = prefill(*backend(1), shape, cache, q, kLength);
      for (const int threads : thinned<int>({1, 2, 3})) {
        const std::vector<float> alone = prefill(*backend(threads), shape, cache, q, 1);
        ASSERT_TRUE(same_bits(alone.data(), whole.data(), static_cast<std::int64_t>(alone.size())))
            << types.name() << " window " << shape.window << " threads " << threads;
      }
      for (const std::int64_t position : {511L, 512L, 600L, kLength - 1L}) {
        const std::vector<double> expected =
            expected_head(shape, cache, q.tensor.row(0, position), 0, 0, position, 0, types.rounds());
        for (std::int64_t j = 0; j < shape.head_dim; ++j)
          expect_close(whole[static_cast<std::size_t>(position * q.tensor.width + j)],
                       expected[static_cast<std::size_t>(j)], tolerance(types),
                       fmt::format("{} position {}", types.name(), position));
      }
    }
}

// The order in which a sequence's pages lie in the pool does not matter.
TEST_P(AttentionBits, DoNotHangOnThePlacesOfPages) {
  constexpr std::int32_t kLength = 200;
  const AttentionShape shape{3, 1, 37, 0};
  for (const Types& types : kTypes) {
    const auto backend = make_backend({.threads = 2, .compute = types.compute});
    std::vector<std::vector<float>> results;
    for (const unsigned order : {1u, 2u}) {
      Random pages(order), content(7);
      const Cache cache(shape, 1, {kLength}, types.kv, pages, content);
      const Activation q(1, kLength, shape.heads * shape.head_dim, content);
      results.push_back(prefill(*backend, shape, cache, q, kLength));
    }
    EXPECT_EQ(results[0], results[1]) << types.name();
  }
}

// A token whose key and value are NaN reaches the rows that see it, and no other row of the chunk.
TEST_P(AttentionBits, LeaveOutWhatTheRowDoesNotSee) {
  constexpr std::int32_t kLength = 90, kBroken = 50, kWindow = 20;
  const AttentionShape shape{3, 1, 24, kWindow};
  for (const Types& types : kTypes) {
    Random random(5);
    Cache cache(shape, 1, {kLength}, types.kv, random);
    const Activation q(1, kLength, 3 * 24, random);
    const auto backend = make_backend({.threads = 2, .compute = types.compute});
    const std::vector<float> sound = prefill(*backend, shape, cache, q, kLength);
    cache.poison(0, kBroken);
    const std::vector<float> broken = prefill(*backend, shape, cache, q, kLength);
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
