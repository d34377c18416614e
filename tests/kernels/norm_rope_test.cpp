#include "kernels/base/scalar_types.h"
#include "op_test.h"

namespace ptrt::testing {
namespace {

class Norm : public OpTest {};
class Rope : public OpTest {};
class NormBits : public CpuOpTest {};
PTRT_EVERY_BACKEND(Norm);
PTRT_EVERY_BACKEND(Rope);
PTRT_EVERY_TARGET(NormBits);

std::vector<double> normed(const float* x, const RandomWeights& w, std::int64_t track, std::int64_t n,
                           double eps) {
  double squares = 0;
  for (std::int64_t i = 0; i < n; ++i) squares += double{x[i]} * double{x[i]};
  std::vector<double> out;
  for (std::int64_t i = 0; i < n; ++i)
    out.push_back(double{x[i]} / std::sqrt(squares / static_cast<double>(n) + eps) * w.value(track, 0, i));
  return out;
}

TEST_P(Norm, AgreesWithFloat64) {
  const auto backend = make_backend();
  for (const std::int64_t width : {1, 10, 16, 37, 40, 64, 96, 1000})
    for (const std::int64_t rows : {1, 5, 70}) {
      Random random(static_cast<unsigned>(width + rows));
      const RandomWeights w(DType::float32, 3, 1, 1, width, random);
      const Activation x(3, rows, width, random);
      Activation out(3, rows, width), in_place(x);
      backend->rms_norm(w.tracks(), 1e-5f, x.tensor, out.tensor);
      backend->rms_norm(w.tracks(), 1e-5f, in_place.tensor, in_place.tensor);
      EXPECT_EQ(out.values, in_place.values);
      for (std::int64_t t = 0; t < 3; ++t)
        for (std::int64_t r = 0; r < rows; ++r) {
          const std::vector<double> expected = normed(x.tensor.row(t, r), w, t, width, 1e-5f);
          for (std::int64_t i = 0; i < width; ++i)
            expect_close(out.at(t, r, i), expected[static_cast<std::size_t>(i)], 2e-6,
                         fmt::format("width {}", width));
        }
    }
}

TEST_P(Norm, ReadsABroadcastAndSurvivesZeros) {
  const auto backend = make_backend();
  Random random(3);
  const RandomWeights w(DType::float32, 2, 1, 1, 24, random);
  Activation x(1, 2, 24, random), out(2, 2, 24);
  std::fill_n(x.tensor.row(0, 1), 24, 0.0f);
  backend->rms_norm(w.tracks(), 1e-5f, x.tensor.broadcast(2), out.tensor);
  for (std::int64_t t = 0; t < 2; ++t) {
    const std::vector<double> expected = normed(x.tensor.row(0, 0), w, t, 24, 1e-5f);
    for (std::int64_t i = 0; i < 24; ++i) {
      expect_close(out.at(t, 0, i), expected[static_cast<std::size_t>(i)], 2e-6, "broadcast");
      EXPECT_EQ(out.at(t, 1, i), 0.0f);
    }
  }
}

TEST_P(NormBits, HangOnTheRowAlone) {
  constexpr std::int64_t kWidth = 203, kRows = 200;
  Random random(4);
  const RandomWeights w(DType::float32, 1, 1, 1, kWidth, random);
  const Activation x(1, kRows, kWidth, random);
  Activation alone(1, kRows, kWidth);
  const auto single = make_backend(1);
  for (std::int64_t r = 0; r < kRows; ++r)
    single->rms_norm(w.tracks(), 1e-6f, {x.tensor.row(0, r), 1, 1, kWidth, 0},
                     {alone.tensor.row(0, r), 1, 1, kWidth, 0});
  for (const int threads : {1, 2, 3}) {
    Activation out(1, kRows, kWidth);
    make_backend(threads)->rms_norm(w.tracks(), 1e-6f, x.tensor, out.tensor);
    EXPECT_TRUE(same_bits(out.values.data(), alone.values.data(), kRows * kWidth)) << threads << " threads";
  }
}

TEST_P(Rope, AnglesAreExact) {
  const auto backend = make_backend();
  for (const std::int64_t head_dim : {2, 10, 64, 128}) {
    const std::vector<std::int32_t> positions{0, 1, 2, 77, 1023, 131071, 5, 6, 9, 12};
    const auto rows = static_cast<std::int64_t>(positions.size());
    Activation cos_sin(1, rows, head_dim);
    backend->rope_angles(positions, 500000.0, cos_sin.tensor);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t j = 0; j < head_dim / 2; ++j) {
        const double exponent = 2.0 * static_cast<double>(j) / static_cast<double>(head_dim);
        const double angle = positions[static_cast<std::size_t>(r)] / std::pow(500000.0, exponent);
        EXPECT_NEAR(cos_sin.at(0, r, j), std::cos(angle), 1e-7);
        EXPECT_NEAR(cos_sin.at(0, r, head_dim / 2 + j), std::sin(angle), 1e-7);
      }
  }
}

// Element of a pool, as a float.
float element(const KvPool& pool, std::int64_t index) {
  if (pool.dtype == DType::float32) return reinterpret_cast<const float*>(pool.data)[index];
  return from_bfloat16(reinterpret_cast<const std::uint16_t*>(pool.data)[index]);
}

struct AppendCase {
  std::int64_t heads, kv_heads, head_dim;
  bool norm, rope;
  DType dtype;
};

// Where a page has an element of a head: float32 as keys [head_dim][16], values [16][head_dim]; bfloat16 as
// keys [head_dim / 2][16][2], an odd one's last element as [16] behind them, values [8][head_dim][2].
std::int64_t key_at(const AppendCase& c, std::int64_t place, std::int64_t j) {
  const bool pairs = c.dtype == DType::bfloat16 && j < c.head_dim / 2 * 2;
  return pairs ? j / 2 * 32 + place * 2 + j % 2 : j * 16 + place;
}
std::int64_t value_at(const AppendCase& c, std::int64_t place, std::int64_t j) {
  return c.dtype == DType::bfloat16 ? place / 2 * 2 * c.head_dim + 2 * j + place % 2 : place * c.head_dim + j;
}

void check_append(Backend& backend, const AppendCase& c) {
  constexpr std::int64_t kTracks = 2, kLayers = 2, kPages = 7, kLayer = 1, kRows = 5;
  constexpr auto kUntouched = std::byte{0xC5};  // as elements about -6e3, which nothing here comes near
  Random random(static_cast<unsigned>(c.head_dim * 4 + c.norm * 2 + c.rope));
  const RandomWeights qn(DType::float32, kTracks, 1, 1, c.head_dim, random);
  const RandomWeights kn(DType::float32, kTracks, 1, 1, c.head_dim, random);
  const Activation q(kTracks, kRows, c.heads * c.head_dim, random),
      k(kTracks, kRows, c.kv_heads * c.head_dim, random), v(kTracks, kRows, c.kv_heads * c.head_dim, random);
  // Two sequences, one with tokens on both sides of a page's end.
  const std::vector<std::int32_t> positions{14, 15, 16, 0, 40}, slots{1, 1, 1, 0, 2};
  const std::vector<std::int32_t> page_table{6, 0, 0, 3, 1, 0, 0, 2, 5};
  const StepRows rows{positions, slots, page_table, 3};
  KvPool pool{nullptr, c.dtype, kTracks, kLayers, kPages, c.kv_heads, c.head_dim};
  std::vector<std::byte> memory(pool.bytes(), kUntouched);
  pool.data = memory.data();
  Activation cos_sin(1, kRows, c.head_dim);
  if (c.rope) backend.rope_angles(positions, 100.0, cos_sin.tensor);

  Activation q_out(q), k_out(k), v_out(v);
  const AttentionShape shape{c.heads, c.kv_heads, c.head_dim, 0, c.rope, 1e-5f};
  const TrackWeights none;
  backend.rope_append(shape, c.norm ? qn.tracks() : none, c.norm ? kn.tracks() : none, cos_sin.tensor,
                      q_out.tensor, k_out.tensor, v_out.tensor, rows, kLayer, pool);

  const auto encoded = [&](const float* head, const RandomWeights& w, std::int64_t t, std::int32_t position) {
    std::vector<double> e(head, head + c.head_dim);
    if (c.norm) e = normed(head, w, t, c.head_dim, 1e-5f);
    if (!c.rope) return e;
    const auto half = static_cast<std::size_t>(c.head_dim / 2);
    for (std::size_t j = 0; j < half; ++j) {
      const double angle =
          position * std::pow(100.0, -2.0 * static_cast<double>(j) / static_cast<double>(c.head_dim));
      const double a = e[j], b = e[j + half];
      e[j] = a * std::cos(angle) - b * std::sin(angle);
      e[j + half] = b * std::cos(angle) + a * std::sin(angle);
    }
    return e;
  };
  const std::int64_t pages[kRows] = {3, 3, 1, 6, 5};
  std::int64_t touched = 0;
  for (std::int64_t t = 0; t < kTracks; ++t)
    for (std::int64_t r = 0; r < kRows; ++r) {
      const std::int32_t position = positions[static_cast<std::size_t>(r)];
      for (std::int64_t h = 0; h < c.heads; ++h) {
        const auto expected = encoded(q.tensor.row(t, r) + h * c.head_dim, qn, t, position);
        for (std::int64_t j = 0; j < c.head_dim; ++j)
          expect_close(q_out.at(t, r, h * c.head_dim + j), expected[static_cast<std::size_t>(j)], 2e-6,
                       "query");
      }
      for (std::int64_t h = 0; h < c.kv_heads; ++h) {
        const auto expected = encoded(k.tensor.row(t, r) + h * c.head_dim, kn, t, position);
        const std::int64_t layer = (pages[r] * kTracks + t) * kLayers + kLayer, size = 16 * c.head_dim;
        const std::int64_t keys = (layer * 2 * c.kv_heads + h) * size, values = keys + c.kv_heads * size;
        const float* stored = k_out.tensor.row(t, r) + h * c.head_dim;
        touched += 2 * c.head_dim;
        for (std::int64_t j = 0; j < c.head_dim; ++j) {
          const float key = element(pool, keys + key_at(c, position % 16, j));
          const float value = element(pool, values + value_at(c, position % 16, j));
          expect_close(stored[j], expected[static_cast<std::size_t>(j)], 2e-6, "key");
          EXPECT_EQ(key, c.dtype == DType::float32 ? stored[j] : from_bfloat16(to_bfloat16(stored[j])));
          const float given = v.at(t, r, h * c.head_dim + j);
          EXPECT_EQ(value, c.dtype == DType::float32 ? given : from_bfloat16(to_bfloat16(given)));
        }
      }
    }
  for (std::int64_t i = 0; i < pool.elements(); ++i) touched -= element(pool, i) > -1e3f ? 1 : 0;
  EXPECT_EQ(touched, 0);
}

TEST_P(Rope, NormsRotatesAndAppends) {
  const auto backend = make_backend();
  for (const std::int64_t head_dim : {1, 10, 16, 37, 64, 80, 96, 128, 256})
    for (const bool norm : {false, true})
      for (const bool rope : {false, true}) {
        if (rope && head_dim % 2 != 0) continue;
        check_append(*backend, {4, 2, head_dim, norm, rope, DType::float32});
        check_append(*backend, {3, 1, head_dim, norm, rope, DType::bfloat16});
      }
}

}  // namespace
}  // namespace ptrt::testing
