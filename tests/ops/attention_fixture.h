// Attention in float64 over the pages of a backend, and the types that attention runs in.
#pragma once

#include "ops/kv_pages.h"

namespace ptrt::testing {

// Types of keys and values and, on the host, of the products.
struct AttentionTypes {
  DType kv;
  Compute compute = Compute::float32;
  bool rounds() const { return kv == DType::bfloat16 && compute != Compute::float32; }
  std::string name() const { return fmt::format("{} kv, {} products", to_string(kv), to_string(compute)); }
};
inline constexpr AttentionTypes kHostTypes[] = {{DType::float32, Compute::float32},
                                                {DType::bfloat16, Compute::float32},
                                                {DType::bfloat16, Compute::bfloat16}};

// With `rounds`, q · scale and the softmax weights are rounded to bfloat16 before they are multiplied.
inline std::vector<double> expected_head(const AttentionShape& shape, const KvPages& pages, const float* q,
                                         std::int64_t track, std::int64_t slot, std::int64_t position,
                                         std::int64_t kv_head, bool rounds) {
  const auto rounded = [&](double value) {
    return rounds ? double{rounded_to(DType::bfloat16, static_cast<float>(value))} : value;
  };
  const std::int64_t first = shape.window == 0 ? 0 : std::max<std::int64_t>(0, position - shape.window + 1);
  std::vector<double> scores, query(q, q + shape.head_dim);
  for (double& element : query) element = rounded(element / std::sqrt(static_cast<double>(shape.head_dim)));
  for (std::int64_t p = first; p <= position; ++p) {
    scores.push_back(0);
    for (std::int64_t j = 0; j < shape.head_dim; ++j)
      scores.back() += query[static_cast<std::size_t>(j)] * double{pages.key(track, slot, p, kv_head, j)};
  }
  const double row_max = *std::max_element(scores.begin(), scores.end());
  std::vector<double> sum(static_cast<std::size_t>(shape.head_dim));
  double total = 0;
  for (std::int64_t p = first; p <= position; ++p) {
    const double exact = std::exp(scores[static_cast<std::size_t>(p - first)] - row_max);
    const double weight = rounded(exact);
    total += exact;
    for (std::int64_t j = 0; j < shape.head_dim; ++j)
      sum[static_cast<std::size_t>(j)] += weight * double{pages.value(track, slot, p, kv_head, j)};
  }
  for (double& element : sum) element /= total;
  return sum;
}

// The fast kernels round a weight against the largest score of the tokens so far, not of all.
inline double host_tolerance(const AttentionTypes& types) {
  return types.rounds() ? 1e-3 : 1e-5;
}

class AttentionTest : public OpTest {
 protected:
  // Makes the backend for each set of types in turn; a device has one.
  template <class Body>
  void for_each_types(const Body& body) {
    if (on_cuda()) return body(AttentionTypes{activations()});
    for (const AttentionTypes& types : kHostTypes) {
      backend_with({.threads = 2, .compute = types.compute});
      body(types);
    }
  }
  double tolerance(const AttentionTypes& types) {
    if (on_cuda()) return activations() == DType::float16 ? 0.004 : 0.03;
    return host_tolerance(types);
  }

  // One step's attention; the pages already hold its tokens.
  Activation attend(const AttentionShape& shape, const KvPages& pages, const Array& q,
                    std::span<const std::int32_t> positions, std::span<const std::int32_t> slots) {
    const auto rows = static_cast<std::int64_t>(positions.size());
    backend().reserve({.tracks = q.tensor.tracks,
                       .rows = rows,
                       .logit_rows = 1,
                       .sequences = pages.sequences(),
                       .context = pages.context(),
                       .heads = shape.heads,
                       .head_dim = shape.head_dim});
    const StepRows step = pages.rows(positions, slots);
    backend().set_step_inputs(std::vector<std::int32_t>(positions.size(), 0), step);
    const Array out(backend(), q.tensor.tracks, rows, q.tensor.width, activations());
    backend().attention(shape, q.tensor, step, KvPages::kLayer, pages.pool(), out.tensor);
    return out.get();
  }
  // A step of four sequences against float64.
  void check(const AttentionShape& shape, std::int64_t tracks, const AttentionTypes& types);
};

inline void AttentionTest::check(const AttentionShape& shape, std::int64_t tracks,
                                 const AttentionTypes& types) {
  Random random(static_cast<unsigned>(shape.head_dim + shape.window));
  const std::vector<std::int32_t> lengths{150, 1, 16, 33};
  KvPages pages(backend(), shape, tracks, std::ssize(lengths), 150, types.kv, random);
  pages.fill(lengths, random);
  // A whole prefill, decode rows of the others, and a chunk that begins inside a page.
  std::vector<std::int32_t> positions, slots;
  for (std::int32_t p = 0; p < 150; ++p) positions.push_back(p), slots.push_back(0);
  for (const std::int32_t slot : {1, 2, 3})
    positions.push_back(lengths[static_cast<std::size_t>(slot)] - 1), slots.push_back(slot);
  for (std::int32_t p = 11; p < 30; ++p) positions.push_back(p), slots.push_back(3);
  const auto rows = static_cast<std::int64_t>(positions.size());
  const Array q(backend(), tracks, rows, shape.heads * shape.head_dim, activations(), random);
  const Activation out = attend(shape, pages, q, positions, slots);
  for (std::int64_t t = 0; t < tracks; ++t)
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        const auto i = static_cast<std::size_t>(r);
        const std::vector<double> expected =
            expected_head(shape, pages, q.host.tensor.row(t, r) + h * shape.head_dim, t, slots[i],
                          positions[i], h / (shape.heads / shape.kv_heads), types.rounds());
        const float* actual = out.tensor.row(t, r) + h * shape.head_dim;
        expect_close({actual, actual + shape.head_dim}, expected, tolerance(types),
                     fmt::format("{}: head_dim {} window {} row {} head {}", types.name(), shape.head_dim,
                                 shape.window, r, h));
      }
}

}  // namespace ptrt::testing
