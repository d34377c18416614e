#include "ops/fixtures/kv_pages.h"

namespace ptrt::testing {
namespace {

class Rope : public OpTest {
 protected:
  void set_step(const AttentionShape& shape, std::int64_t tracks, const StepRows& rows) {
    const auto count = static_cast<std::int64_t>(rows.positions.size());
    backend().reserve({.tracks = tracks,
                       .rows = count,
                       .logit_rows = 1,
                       .sequences = count,
                       .context = 131072,
                       .heads = shape.heads,
                       .head_dim = shape.head_dim});
    backend().set_step_inputs(std::vector<std::int32_t>(rows.positions.size(), 0), rows);
  }
  struct Case {
    std::int64_t heads, kv_heads, head_dim;
    bool norm, rope;
    DType dtype;
    bool norm_after_rope = false;
  };
  void check_append(const Case& c);
};
PTRT_EVERY_BACKEND(Rope);

TEST_P(Rope, AnglesAreExact) {
  const std::vector<std::int32_t> positions{0, 1, 2, 77, 1023, 131071, 5, 6, 9, 12};
  const std::vector<std::int32_t> slots{0, 0, 0, 1, 2, 3, 4, 4, 5, 6}, pages(7 * 8192, 0);
  const auto rows = static_cast<std::int64_t>(positions.size());
  for (const std::int64_t head_dim : {2, 10, 64, 128}) {
    set_step({1, 1, head_dim}, 1, {positions, slots, pages, 8192});
    const Array angles(backend(), 1, rows, head_dim);
    backend().rope_angles(positions, plain_rope(500000.0, head_dim), angles.tensor);
    const Activation cos_sin = angles.get();
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t j = 0; j < head_dim / 2; ++j) {
        const double exponent = 2.0 * static_cast<double>(j) / static_cast<double>(head_dim);
        const double angle = positions[static_cast<std::size_t>(r)] / std::pow(500000.0, exponent);
        EXPECT_NEAR(cos_sin.at(0, r, j), std::cos(angle), 1e-7);
        EXPECT_NEAR(cos_sin.at(0, r, head_dim / 2 + j), std::sin(angle), 1e-7);
      }
  }
}

// Frequencies that no theta gives, and a magnitude.
RopeFrequencies random_rope(std::int64_t head_dim, Random& random) {
  RopeFrequencies rope;
  for (std::int64_t j = 0; j < head_dim / 2; ++j)
    rope.frequencies.push_back(std::exp2(double{random.uniform(-12, 0)}));
  rope.magnitude = 1.37;
  return rope;
}

TEST_P(Rope, AnglesHaveTheirFrequenciesAndMagnitude) {
  const std::vector<std::int32_t> positions{0, 1, 77, 1023, 131071}, slots{0, 0, 1, 2, 3};
  const std::vector<std::int32_t> pages(4 * 8192, 0);
  Random random(3);
  for (const std::int64_t head_dim : {2, 10, 64, 128, 256}) {
    set_step({1, 1, head_dim}, 1, {positions, slots, pages, 8192});
    const RopeFrequencies rope = random_rope(head_dim, random);
    const Array angles(backend(), 1, std::ssize(positions), head_dim);
    backend().rope_angles(positions, rope, angles.tensor);
    const Activation cos_sin = angles.get();
    for (std::size_t r = 0; r < positions.size(); ++r)
      for (std::int64_t j = 0; j < head_dim / 2; ++j) {
        const double angle = positions[r] * rope.frequencies[static_cast<std::size_t>(j)];
        const auto row = static_cast<std::int64_t>(r);
        EXPECT_NEAR(cos_sin.at(0, row, j), rope.magnitude * std::cos(angle), 1.5e-7);
        EXPECT_NEAR(cos_sin.at(0, row, head_dim / 2 + j), rope.magnitude * std::sin(angle), 1.5e-7);
      }
  }
}

// What happens to a head: QK-norm where there are weights, and RoPE.
struct Encoding {
  const RandomWeights* norm;
  const RopeFrequencies* rope;  // null: none
  bool norm_after_rope;
};

void rotate(std::vector<double>& head, const RopeFrequencies& rope, std::int32_t position) {
  const std::size_t half = head.size() / 2;
  for (std::size_t j = 0; j < half; ++j) {
    const double angle = position * rope.frequencies[j], a = head[j], b = head[j + half];
    head[j] = rope.magnitude * (a * std::cos(angle) - b * std::sin(angle));
    head[j + half] = rope.magnitude * (b * std::cos(angle) + a * std::sin(angle));
  }
}

// In float64.
std::vector<double> encoded(const float* head, std::int64_t head_dim, const Encoding& encoding,
                            std::int64_t track, std::int32_t position) {
  std::vector<double> e(head, head + head_dim);
  const auto norm = [&] {
    if (encoding.norm != nullptr) e = rms_normed(e.data(), *encoding.norm, track, head_dim, 1e-5f);
  };
  if (!encoding.norm_after_rope) norm();
  if (encoding.rope != nullptr) rotate(e, *encoding.rope, position);
  if (encoding.norm_after_rope) norm();
  return e;
}

void Rope::check_append(const Case& c) {
  constexpr std::int64_t kTracks = 2, kRows = 5;
  Random random(static_cast<unsigned>(c.head_dim * 4 + c.norm * 2 + c.rope));
  // Weights that differ, so that the order of QK-norm and RoPE matters.
  const RandomWeights qn(DType::float32, kTracks, 1, 1, c.head_dim, random);
  const RandomWeights kn(DType::float32, kTracks, 1, 1, c.head_dim, random);
  const TrackWeights none, q_norm = c.norm ? qn.load(backend(), WeightRole::vector) : none,
                           k_norm = c.norm ? kn.load(backend(), WeightRole::vector) : none;
  const AttentionShape shape{c.heads, c.kv_heads, c.head_dim, 0, c.rope, 1e-5f, c.norm_after_rope};
  const Array q(backend(), kTracks, kRows, c.heads * c.head_dim, activations(), random),
      k(backend(), kTracks, kRows, c.kv_heads * c.head_dim, activations(), random),
      v(backend(), kTracks, kRows, c.kv_heads * c.head_dim, activations(), random);
  // Three sequences, one with tokens on both sides of a page's end.
  const std::vector<std::int32_t> positions{14, 15, 16, 0, 40}, slots{1, 1, 1, 0, 2};
  KvPages pages(backend(), shape, kTracks, 3, 48, c.dtype, random);
  const StepRows rows = pages.rows(positions, slots);
  set_step(shape, kTracks, rows);
  const Array cos_sin(backend(), 1, kRows, c.head_dim);
  const RopeFrequencies rope =
      c.norm_after_rope ? random_rope(c.head_dim, random) : plain_rope(100.0, c.head_dim);
  if (c.rope) backend().rope_angles(positions, rope, cos_sin.tensor);
  backend().rope_append(shape, q_norm, k_norm, cos_sin.tensor, q.tensor, k.tensor, v.tensor, rows,
                        KvPages::kLayer, pages.pool());
  pages.load();

  const Activation q_out = q.get(), k_out = k.get();
  const double tolerance = once_rounded(2e-6);
  const RopeFrequencies* angles = c.rope ? &rope : nullptr;
  const Encoding of_q{c.norm ? &qn : nullptr, angles, c.norm_after_rope},
      of_k{c.norm ? &kn : nullptr, angles, c.norm_after_rope};
  for (std::int64_t t = 0; t < kTracks; ++t)
    for (std::int64_t r = 0; r < kRows; ++r) {
      const std::int32_t position = positions[static_cast<std::size_t>(r)];
      const std::int32_t slot = slots[static_cast<std::size_t>(r)];
      for (std::int64_t h = 0; h < c.heads; ++h) {
        const auto expected =
            encoded(q.host.tensor.row(t, r) + h * c.head_dim, c.head_dim, of_q, t, position);
        for (std::int64_t j = 0; j < c.head_dim; ++j)
          expect_close(q_out.at(t, r, h * c.head_dim + j), expected[static_cast<std::size_t>(j)], tolerance,
                       "query");
      }
      for (std::int64_t h = 0; h < c.kv_heads; ++h) {
        const auto expected =
            encoded(k.host.tensor.row(t, r) + h * c.head_dim, c.head_dim, of_k, t, position);
        for (std::int64_t j = 0; j < c.head_dim; ++j) {
          const float key = pages.key(t, slot, position, h, j), in_k = k_out.at(t, r, h * c.head_dim + j);
          // On the host k is left as it was before it was rounded to the pool's type.
          if (!on_cuda()) {
            EXPECT_EQ(key, rounded_to(c.dtype, in_k));
          }
          expect_close(on_cuda() ? key : in_k, expected[static_cast<std::size_t>(j)], tolerance, "key");
          EXPECT_EQ(pages.value(t, slot, position, h, j),
                    rounded_to(c.dtype, v.host.at(t, r, h * c.head_dim + j)));
        }
      }
    }
  EXPECT_EQ(pages.finite_elements(), kTracks * kRows * c.kv_heads * 2 * c.head_dim);
}

TEST_P(Rope, NormsRotatesAndAppends) {
  for (const std::int64_t head_dim : {1, 10, 16, 37, 64, 80, 96, 128, 256})
    for (const bool norm : {false, true})
      for (const bool rope : {false, true}) {
        if (rope && head_dim % 2 != 0) continue;
        check_append({4, 2, head_dim, norm, rope, activations()});
        check_append({3, 1, head_dim, norm, rope, on_cuda() ? activations() : DType::bfloat16});
        check_append({4, 2, head_dim, norm, rope, activations(), true});
      }
}

}  // namespace
}  // namespace ptrt::testing
