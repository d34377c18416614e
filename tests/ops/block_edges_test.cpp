// The ops around a sync have the bits of the ops that they stand for.
#include "ops/fixtures/op_fixture.h"

namespace ptrt::testing {
namespace {

class BlockEdges : public OpTest {};
PTRT_EVERY_BACKEND(BlockEdges);

struct Case {
  std::int64_t tracks, rows, width;
};
const std::vector<Case> kCases{{1, 1, 1}, {3, 2, 37}, {2, 3, 64}, {1, 2, 1500}, {2, 1, 4100}, {18, 2, 8}};
constexpr float kEps = 1e-5f;

TrackWeights norm_weights(Backend& backend, const Case& shape, Random& random) {
  return RandomWeights(DType::float32, shape.tracks, 1, 1, shape.width, random)
      .load(backend, WeightRole::vector);
}

// bits: 1 the first norm, 2 the second, 4 what is subtracted, 8 an output elsewhere, 16 a sublayer of
// float32, 32 and 64 that the first and the second norm multiply by their weights first.
void check_end(Backend& backend, const Case& shape, unsigned bits) {
  const auto& [tracks, rows, width] = shape;
  Random random(bits + static_cast<unsigned>(width));
  const TrackWeights first = norm_weights(backend, shape, random),
                     second = norm_weights(backend, shape, random);
  const DType added = (bits & 16) != 0 ? DType::float32 : activation_dtype(backend);
  const Array a(backend, tracks, rows, width, added, random),
      h(backend, tracks, rows, width, DType::float32, random),
      minus(backend, 1, rows, width, DType::float32, random), y(backend, tracks, rows, width, DType::float32),
      y_plain(backend, tracks, rows, width, DType::float32);
  const Array h_plain(h);
  BlockEnd end;
  end.a = a.tensor;
  end.h = h.tensor;
  end.y = (bits & 8) != 0 ? y.tensor : h.tensor;
  if ((bits & 4) != 0) end.minus = minus.tensor;
  end.post_norm = (bits & 1) != 0 ? &first : nullptr;
  end.combine_norm = (bits & 2) != 0 ? &second : nullptr;
  end.pre_scale_post = (bits & 32) != 0;
  end.pre_scale_combine = (bits & 64) != 0;
  end.eps = kEps;
  backend.end_block(end);
  end.h = h_plain.tensor;
  end.y = (bits & 8) != 0 ? y_plain.tensor : h_plain.tensor;
  backend.Backend::end_block(end);
  const bool elsewhere = (bits & 8) != 0;
  EXPECT_EQ((elsewhere ? y : h).get().values, (elsewhere ? y_plain : h_plain).get().values)
      << "tracks " << tracks << " rows " << rows << " width " << width << " kind " << bits;
}

TEST_P(BlockEdges, EndIsItsOpsInARow) {
  for (const Case& shape : kCases)
    for (unsigned bits = 0; bits < 128; ++bits) check_end(backend(), shape, bits);
}

// bits: 1 the dispatch norm, 2 the pre-norm, 4 onto x, 8 and 16 that these norms multiply by their weights
// first.
void check_begin(Backend& backend, const Case& shape, std::int64_t parts, unsigned bits) {
  const auto& [tracks, rows, width] = shape;
  Random random(bits + static_cast<unsigned>(width));
  const TrackWeights first = norm_weights(backend, shape, random),
                     second = norm_weights(backend, shape, random);
  const Array x(backend, 1, rows, width, DType::float32, random),
      all(backend, parts + 1, rows, width, DType::float32, random, 100);
  const Array x_plain(x);
  const DType dtype = activation_dtype(backend);
  const Array h(backend, tracks, rows, width, DType::float32),
      h_plain(backend, tracks, rows, width, DType::float32), normed(backend, tracks, rows, width, dtype),
      normed_plain(backend, tracks, rows, width, dtype);
  std::vector<const float*> pointers;
  for (std::int64_t p = 0; p < parts; ++p) pointers.push_back(all.tensor.row(p, 0));
  BlockBegin begin;
  begin.parts = pointers;
  begin.scale = 0.3f;
  begin.add_to_x = (bits & 4) != 0;
  begin.x = x.tensor;
  begin.h = h.tensor;
  begin.normed = normed.tensor;
  begin.dispatch_norm = (bits & 1) != 0 ? &first : nullptr;
  begin.pre_norm = (bits & 2) != 0 ? &second : nullptr;
  begin.pre_scale_dispatch = (bits & 8) != 0;
  begin.pre_scale_pre = (bits & 16) != 0;
  begin.eps = kEps;
  backend.begin_block(begin);
  begin.x = x_plain.tensor;
  begin.h = h_plain.tensor;
  begin.normed = normed_plain.tensor;
  backend.Backend::begin_block(begin);
  const std::string where =
      fmt::format("tracks {} rows {} width {} parts {} kind {}", tracks, rows, width, parts, bits);
  EXPECT_EQ(x.get().values, x_plain.get().values) << where;
  EXPECT_EQ(h.get().values, h_plain.get().values) << where;
  EXPECT_EQ(normed.get().values, normed_plain.get().values) << where;
}

TEST_P(BlockEdges, BeginIsItsOpsInARow) {
  for (const Case& shape : kCases)
    for (const std::int64_t parts : {0, 1, 2, 3, 8, 13})
      for (unsigned bits = 0; bits < 32; ++bits) check_begin(backend(), shape, parts, bits);
}

}  // namespace
}  // namespace ptrt::testing
