#include "device_test.h"

namespace ptrt::testing {
namespace {

class DeviceMoe : public DeviceTest {};
PTRT_EVERY_DEVICE_AND_TYPE(DeviceMoe);

struct Layer {
  Layer(Backend& on, const MoeShape& moe_shape, std::int64_t track_count, std::int64_t width, Random& random)
      : backend(on),
        shape(moe_shape),
        tracks(track_count),
        d(width),
        router(on, reference, WeightRole::router, DType::float32, tracks, 1, shape.experts, d, random),
        gate(on, reference, WeightRole::matrix, matrix_type_of(on), tracks, shape.experts, shape.ffn_size, d,
             random),
        up(on, reference, WeightRole::matrix, matrix_type_of(on), tracks, shape.experts, shape.ffn_size, d,
           random),
        down(on, reference, WeightRole::matrix, matrix_type_of(on), tracks, shape.experts, d, shape.ffn_size,
             random) {}

  void check(std::int64_t rows, double tolerance, Random& random) {
    WorkLimits limits;
    limits.tracks = tracks;
    limits.rows = rows;
    limits.sequences = limits.logit_rows = limits.context = limits.heads = limits.head_dim = 1;
    limits.experts = shape.experts;
    limits.top_k = shape.top_k;
    backend.reserve(limits);
    const DType inner = backend.traits().activation_dtype;
    const std::int64_t slots = rows * shape.top_k;
    const OnDevice x(backend, tracks, rows, d, inner, random);
    OnDevice y(backend, tracks, rows, d, inner), logits(backend, tracks, rows, shape.experts, DType::float32),
        gate_out(backend, tracks, slots, shape.ffn_size, inner),
        up_out(backend, tracks, slots, shape.ffn_size, inner), expert_out(backend, tracks, slots, d, inner);
    MoeJob job{shape,    &router.device, &gate.device,    &up.device,    &down.device,     x.tensor,
               y.tensor, logits.tensor,  gate_out.tensor, up_out.tensor, expert_out.tensor};
    backend.moe_ffn(job);
    // Ranks that share a track add their parts in float32.
    OnDevice exact(backend, tracks, rows, d, DType::float32);
    job.y = exact.tensor;
    backend.moe_ffn(job);
    Activation expected(tracks, rows, d);
    reference.moe_ffn({shape,
                       &router.host,
                       &gate.host,
                       &up.host,
                       &down.host,
                       x.host.tensor,
                       expected.tensor,
                       {},
                       {},
                       {},
                       {}});
    const std::string where = fmt::format("experts {} top_k {} ffn {} rows {} d {}", shape.experts,
                                          shape.top_k, shape.ffn_size, rows, d);
    expect_near(y.get(), expected.values, tolerance, where);
    expect_near(exact.get(), expected.values, tolerance, where + ", float32");
  }

  Backend& backend;
  ReferenceBackend reference;
  MoeShape shape;
  std::int64_t tracks, d;
  BothWeights router, gate, up, down;
};

void check(Backend& backend, const MoeShape& shape, std::int64_t tracks, std::int64_t rows, std::int64_t d,
           double tolerance) {
  Random random(static_cast<unsigned>(rows + shape.experts));
  Layer(backend, shape, tracks, d, random).check(rows, tolerance, random);
}

TEST_P(DeviceMoe, AgreesWithTheReference) {
  // Four roundings in a row, of sums of several units.
  const double tolerance = on_cuda() ? 20 * half_unit_of(backend()) : 1e-4;
  for (const MoeShape& shape :
       {MoeShape{4, 2, 24, 0}, {4, 2, 24, 0.5f}, {5, 1, 7, 30}, {3, 3, 40, 0}, {1, 1, 8, 0}, {16, 4, 16, 0}})
    for (const std::int64_t rows : {1, 3, 20}) check(backend(), shape, 2, rows, 24, tolerance);
  check(backend(), {300, 2, 8, 0}, 1, 2, 20, tolerance);
  check(backend(), {2, 1, 8, 0}, 18, 2, 8, tolerance);
  check(backend(), {2, 1, 16, 0}, 1, 150, 16, tolerance);
  check(backend(), {11, 3, 8, 0}, 3, 67, 16,
        tolerance);  // slots, experts: no multiples of a warp, of a block
}

// A router of zeros: the lowest experts are chosen, more of them than a warp has lanes.
TEST_P(DeviceMoe, TakesTheLowerIndexOfEquals) {
  constexpr std::int64_t kExperts = 70, kTopK = 40, kWidth = 16;
  Random random(1);
  Layer layer(backend(), {kExperts, kTopK, 8, 0}, 1, kWidth, random);
  FromFunction zeros([](std::span<std::byte> rows) { std::ranges::fill(rows, std::byte{0}); });
  const WeightSpec router{"router", WeightRole::router, DType::float32, 1, kExperts, kWidth};
  layer.router.device = {backend().load_weight(router, zeros)};
  layer.router.host = {layer.reference.load_weight(router, zeros)};
  layer.check(2, on_cuda() ? 8 * half_unit_of(backend()) : 1e-4, random);
}

}  // namespace
}  // namespace ptrt::testing
