#include "op_test.h"

namespace ptrt::testing {
namespace {

class AttentionOp : public OpTest {};
class AttentionBits : public CpuOpTest {};
PTRT_EVERY_BACKEND(AttentionOp);
PTRT_EVERY_TARGET(AttentionBits);

// Sequences whose pages lie scattered in a pool with random keys and values; places no sequence owns hold
// NaN.
class Cache {
 public:
  Cache(const AttentionShape& shape, std::int64_t tracks, const std::vector<std::int32_t>& lengths,
        Random& random)
      : stride_(0) {
    for (const std::int32_t length : lengths) stride_ = std::max<std::int64_t>(stride_, (length + 15) / 16);
    const auto slots = static_cast<std::int64_t>(lengths.size());
    std::vector<std::int32_t> pages(static_cast<std::size_t>(stride_ * slots + 3));
    for (std::size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<std::int32_t>(i);
    std::shuffle(pages.begin(), pages.end(), random.engine());
    page_table_.assign(pages.begin(), pages.end() - 3);
    pool_ = {nullptr,        DType::float32,        tracks,        kLayers, static_cast<std::int64_t>(pages.size()),
             shape.kv_heads, shape.head_dim};
    memory_.assign(static_cast<std::size_t>(pool_.elements()), NAN);
    pool_.data = reinterpret_cast<std::byte*>(memory_.data());
    for (std::int64_t t = 0; t < tracks; ++t)
      for (std::int64_t slot = 0; slot < slots; ++slot)
        for (std::int64_t p = 0; p < lengths[static_cast<std::size_t>(slot)]; ++p)
          for (std::int64_t h = 0; h < shape.kv_heads; ++h)
            for (std::int64_t j = 0; j < shape.head_dim; ++j) {
              key(t, slot, p, h)[j] = random.uniform(-3, 3);
              value(t, slot, p, h)[j] = random.uniform();
            }
  }
  float* key(std::int64_t t, std::int64_t slot, std::int64_t position, std::int64_t head) const {
    return pool_.keys<float>(t, kLayer, page(slot, position), head) + position % 16 * pool_.head_dim;
  }
  float* value(std::int64_t t, std::int64_t slot, std::int64_t position, std::int64_t head) const {
    return pool_.values<float>(t, kLayer, page(slot, position), head) + position % 16 * pool_.head_dim;
  }
  const KvPool& pool() const { return pool_; }
  StepRows rows(std::span<const std::int32_t> positions, std::span<const std::int32_t> slots) const {
    return {positions, slots, page_table_, stride_};
  }
  static constexpr std::int64_t kLayers = 2, kLayer = 1;

 private:
  std::int64_t page(std::int64_t slot, std::int64_t position) const {
    return page_table_[static_cast<std::size_t>(slot * stride_ + position / 16)];
  }
  std::int64_t stride_;
  std::vector<std::int32_t> page_table_;
  std::vector<float> memory_;
  KvPool pool_;
};

std::vector<double> expected_head(const AttentionShape& shape, const Cache& cache, const float* q,
                                  std::int64_t track, std::int64_t slot, std::int64_t position,
                                  std::int64_t kv_head) {
  const std::int64_t first = shape.window == 0 ? 0 : std::max<std::int64_t>(0, position - shape.window + 1);
  std::vector<double> sum(static_cast<std::size_t>(shape.head_dim));
  double total = 0;
  for (std::int64_t p = first; p <= position; ++p) {
    double score = 0;
    for (std::int64_t j = 0; j < shape.head_dim; ++j)
      score += double{q[j]} * double{cache.key(track, slot, p, kv_head)[j]};
    const double weight = std::exp(score / std::sqrt(static_cast<double>(shape.head_dim)));
    total += weight;
    for (std::int64_t j = 0; j < shape.head_dim; ++j)
      sum[static_cast<std::size_t>(j)] += weight * double{cache.value(track, slot, p, kv_head)[j]};
  }
  for (double& element : sum) element /= total;
  return sum;
}

void check(Backend& backend, const AttentionShape& shape, std::int64_t tracks) {
  Random random(static_cast<unsigned>(shape.head_dim + shape.window));
  const std::vector<std::int32_t> lengths{70, 1, 16, 33};
  const Cache cache(shape, tracks, lengths, random);
  // A whole prefill, decode rows of the others, and a chunk that begins inside a page.
  std::vector<std::int32_t> positions, slots;
  for (std::int32_t p = 0; p < 70; ++p) positions.push_back(p), slots.push_back(0);
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
                          h / (shape.heads / shape.kv_heads));
        for (std::int64_t j = 0; j < shape.head_dim; ++j)
          expect_close(
              out.at(t, r, h * shape.head_dim + j), expected[static_cast<std::size_t>(j)], 1e-5,
              fmt::format("head_dim {} window {} row {} head {}", shape.head_dim, shape.window, r, h));
      }
}

TEST_P(AttentionOp, AgreesWithFloat64ForEveryHeadSize) {
  const auto backend = make_backend();
  for (const std::int64_t head_dim : {1, 10, 16, 37, 64, 80, 96, 128, 256})
    check(*backend, {4, 2, head_dim, 0}, 2);
}

TEST_P(AttentionOp, AgreesWithFloat64ForEveryWindow) {
  const auto backend = make_backend();
  for (const std::int64_t window : {1, 2, 7, 15, 16, 17, 31, 32, 40, 69, 70, 500})
    check(*backend, {2, 2, 24, window}, 1);
}

TEST_P(AttentionOp, AgreesWithFloat64ForEveryGrouping) {
  const auto backend = make_backend();
  for (const auto& [heads, kv_heads] :
       {std::pair{1, 1}, {3, 1}, {5, 1}, {8, 1}, {6, 2}, {6, 6}, {20, 1}, {40, 2}})
    check(*backend, {heads, kv_heads, 20, 21}, 1);
}

// Large scores: the running maximum must keep everything in range.
TEST_P(AttentionOp, SurvivesLargeScores) {
  const auto backend = make_backend();
  Random random(8);
  const AttentionShape shape{1, 1, 16, 0};
  const std::vector<std::int32_t> lengths{40}, positions{39}, slots{0};
  const Cache cache(shape, 1, lengths, random);
  Activation q(1, 1, 16, random), out(1, 1, 16);
  for (float& element : q.values) element *= 1000;
  backend->attention(shape, q.tensor, cache.rows(positions, slots), Cache::kLayer, cache.pool(), out.tensor);
  std::int64_t largest = 0;
  double largest_score = -INFINITY;
  for (std::int64_t p = 0; p < 40; ++p) {
    double score = 0;
    for (std::int64_t j = 0; j < 16; ++j) score += double{q.at(0, 0, j)} * double{cache.key(0, 0, p, 0)[j]};
    if (score > largest_score) largest = p, largest_score = score;
  }
  for (std::int64_t j = 0; j < 16; ++j) EXPECT_NEAR(out.at(0, 0, j), cache.value(0, 0, largest, 0)[j], 1e-5);
}

// A row's result is the same in a prefill of any chunking, in a decode step among others, and on any number
// of threads.
TEST_P(AttentionBits, HangOnTheRowAlone) {
  for (const AttentionShape& shape :
       {AttentionShape{4, 4, 64, 0}, {4, 2, 40, 20}, {6, 1, 16, 3}, {3, 1, 10, 0}, {2, 2, 128, 50}}) {
    Random random(static_cast<unsigned>(shape.head_dim));
    constexpr std::int32_t kLength = 100;
    const Cache cache(shape, 2, {kLength, 50}, random);
    const std::int64_t width = shape.heads * shape.head_dim;
    const Activation q(2, kLength, width, random);
    std::vector<std::int32_t> positions, slots(kLength, 0);
    for (std::int32_t p = 0; p < kLength; ++p) positions.push_back(p);

    const auto run = [&](Backend& backend, std::int64_t chunk) {
      Activation out(2, kLength, width);
      for (std::int64_t begin = 0; begin < kLength; begin += chunk) {
        const std::int64_t n = std::min<std::int64_t>(chunk, kLength - begin);
        const auto first = static_cast<std::size_t>(begin), count = static_cast<std::size_t>(n);
        const Tensor chunk_q{q.tensor.row(0, begin), 2, n, width, q.tensor.track_stride};
        const Tensor chunk_out{out.tensor.row(0, begin), 2, n, width, out.tensor.track_stride};
        const StepRows rows = cache.rows(std::span<const std::int32_t>(positions).subspan(first, count),
                                         std::span<const std::int32_t>(slots).subspan(first, count));
        backend.attention(shape, chunk_q, rows, Cache::kLayer, cache.pool(), chunk_out);
      }
      return out.values;
    };
    const std::vector<float> alone = run(*make_backend(1), 1);
    for (const int threads : {1, 2, 3}) {
      const auto backend = make_backend(threads);
      for (const std::int64_t chunk : {1, 2, 3, 5, 7, 16, 31, 64, 100}) {
        const std::vector<float> chunked = run(*backend, chunk);
        ASSERT_TRUE(same_bits(alone.data(), chunked.data(), static_cast<std::int64_t>(alone.size())))
            << "head_dim " << shape.head_dim << " chunk " << chunk << " threads " << threads;
      }
    }
  }
}

}  // namespace
}  // namespace ptrt::testing
