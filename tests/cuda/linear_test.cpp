#include "device_test.h"

namespace ptrt::testing {
namespace {

class DeviceLinear : public DeviceTest {};
PTRT_EVERY_DEVICE_AND_TYPE(DeviceLinear);

struct Shape {
  std::int64_t tracks, rows, out, in;
};

// Rounding a sum of `in` products of elements in [-1, 1].
double tolerance_of(double rounding, std::int64_t in) {
  return rounding * std::sqrt(static_cast<double>(in)) / 2;
}

// What the reference multiplies as the backend does: bfloat16, or what holds every float16.
CpuOptions products_of(const Backend& backend) {
  return {.compute =
              backend.traits().activation_dtype == DType::float16 ? Compute::float32 : Compute::bfloat16};
}

void check(Backend& backend, const Shape& s, DType weights, DType y_type, double rounding) {
  Random random(static_cast<unsigned>(s.rows * 1000 + s.out * 10 + s.in));
  ReferenceBackend reference(products_of(backend));
  const BothWeights w(backend, reference, WeightRole::matrix, weights, s.tracks, 1, s.out, s.in, random);
  const OnDevice x(backend, s.tracks, s.rows, s.in, backend.traits().activation_dtype, random);
  OnDevice y(backend, s.tracks, s.rows, s.out, y_type);
  const LinearJob job{&w.device, x.tensor, y.tensor};
  backend.linear({&job, 1});
  Activation expected(s.tracks, s.rows, s.out);
  const LinearJob reference_job{&w.host, x.host.tensor, expected.tensor};
  reference.linear({&reference_job, 1});
  expect_near(y.get(), expected.values, tolerance_of(rounding, s.in),
              fmt::format("{} weights, tracks {} rows {} out {} in {}", to_string(weights), s.tracks, s.rows,
                          s.out, s.in));
}

// Few rows (one launch for all), more (cuBLASLt), widths that neither likes.
TEST_P(DeviceLinear, AgreesWithTheReference) {
  // The CPU backend here computes in float32: it sees the rounding of the reference's inputs as an error.
  const double loose = on_cuda() ? half_unit_of(backend()) : 0x1p-7;
  for (const auto& [out, in] : {std::pair{1, 8}, {16, 64}, {40, 1100}, {19, 37}, {33, 128}, {24, 130}})
    for (const std::int64_t rows : {1, 8, 9, 16, 17, 40})
      check(backend(), {2, rows, out, in}, matrices(), inner(), loose);
  check(backend(), {18, 3, 24, 40}, matrices(), inner(), loose);
  check(backend(), {18, 20, 24, 40}, matrices(), inner(), loose);
  check(backend(), {1, 70, 17, 24}, matrices(), inner(), loose);
  for (const DType weights : {DType::float32, DType::float16, DType::bfloat16})
    for (const std::int64_t rows : {2, 20}) check(backend(), {1, rows, 24, 48}, weights, inner(), 2 * loose);
}

// Logits are not rounded.
TEST_P(DeviceLinear, WritesFloat32) {
  const double tight = on_cuda() ? 1e-5 : 0x1p-7;
  for (const std::int64_t rows : {1, 12, 30})
    for (const std::int64_t out : {259, 64})
      check(backend(), {1, rows, out, 72}, matrices(), DType::float32, tight);
}

TEST_P(DeviceLinear, RunsAListOfJobsAndBroadcasts) {
  Random random(5);
  ReferenceBackend reference;
  for (const std::int64_t rows : {4, 20}) {
    const BothWeights wq(backend(), reference, WeightRole::matrix, matrices(), 3, 1, 32, 24, random),
        wk(backend(), reference, WeightRole::matrix, matrices(), 3, 1, 8, 24, random),
        wv(backend(), reference, WeightRole::matrix, matrices(), 3, 1, 7, 24, random);
    const OnDevice x(backend(), 1, rows, 24, inner(), random);
    OnDevice q(backend(), 3, rows, 32, inner()), k(backend(), 3, rows, 8, inner()),
        v(backend(), 3, rows, 7, inner());
    const LinearJob jobs[] = {{&wq.device, x.tensor.broadcast(3), q.tensor},
                              {&wk.device, x.tensor.broadcast(3), k.tensor},
                              {&wv.device, x.tensor, v.tensor}};
    backend().linear(jobs);
    Activation q_host(3, rows, 32), k_host(3, rows, 8), v_host(3, rows, 7);
    const LinearJob host_jobs[] = {{&wq.host, x.host.tensor.broadcast(3), q_host.tensor},
                                   {&wk.host, x.host.tensor, k_host.tensor},
                                   {&wv.host, x.host.tensor, v_host.tensor}};
    reference.linear(host_jobs);
    expect_near(q.get(), q_host.values, rounding(3), "q");
    expect_near(k.get(), k_host.values, rounding(3), "k");
    expect_near(v.get(), v_host.values, rounding(3), "v");
  }
}

// Up to 16 rows in one kernel, with more as two products and their gate.
TEST_P(DeviceLinear, GatesOneProductByAnother) {
  for (const auto& [tracks, out, in] :
       {std::tuple{2, 33, 40}, {1, 24, 72}, {18, 16, 24}, {1, 20, 37}, {3, 40, 1100}})
    for (const std::int64_t rows : {1, 8, 9, 16, 17}) {
      Random random(static_cast<unsigned>(rows));
      ReferenceBackend reference(products_of(backend()));
      const BothWeights gate(backend(), reference, WeightRole::matrix, matrices(), tracks, 1, out, in,
                             random),
          up(backend(), reference, WeightRole::matrix, matrices(), tracks, 1, out, in, random);
      const OnDevice x(backend(), tracks, rows, in, inner(), random);
      OnDevice gate_out(backend(), tracks, rows, out, inner()), up_out(backend(), tracks, rows, out, inner());
      backend().gated_linear({&gate.device, x.tensor, gate_out.tensor},
                             {&up.device, x.tensor, up_out.tensor});
      Activation expected(tracks, rows, out), scratch(tracks, rows, out);
      reference.gated_linear({&gate.host, x.host.tensor, expected.tensor},
                             {&up.host, x.host.tensor, scratch.tensor});
      // The CPU backend here sees the rounding of the reference's inputs as an error of both factors.
      const double size = std::sqrt(static_cast<double>(in)) * (on_cuda() ? 1 : 2);
      expect_near(gate_out.get(), expected.values, size * (on_cuda() ? 2 * half_unit_of(backend()) : 0x1p-7),
                  fmt::format("tracks {} rows {} out {} in {}", tracks, rows, out, in));
    }
}

// Two of equal sizes that lie behind each other are one batch for cuBLASLt.
TEST_P(DeviceLinear, TakesPairs) {
  Random random(8);
  ReferenceBackend reference;
  const std::vector<WeightSpec> specs(2, {"w", WeightRole::matrix, matrices(), 1, 16, 24});
  backend().plan_weights(specs);
  const BothWeights k(backend(), reference, WeightRole::matrix, matrices(), 1, 1, 16, 24, random),
      v(backend(), reference, WeightRole::matrix, matrices(), 1, 1, 16, 24, random);
  constexpr std::int64_t kRows = 20;
  const OnDevice x(backend(), 1, kRows, 24, inner(), random);
  OnDevice both(backend(), 1, 3 * kRows, 16, inner());  // the second behind a gap
  const auto part = [](const Tensor& all, std::int64_t first_row) {
    auto* first = static_cast<std::byte*>(all.data) +
                  static_cast<std::size_t>(first_row * all.width) * size_of(all.dtype);
    return Tensor{first, 1, kRows, all.width, kRows * all.width, all.dtype};
  };
  const LinearJob jobs[] = {{&k.device, x.tensor, part(both.tensor, 0)},
                            {&v.device, x.tensor, part(both.tensor, 2 * kRows)}};
  backend().linear(jobs);
  Activation expected(1, 3 * kRows, 16);
  const LinearJob host_jobs[] = {{&k.host, x.host.tensor, part(expected.tensor, 0)},
                                 {&v.host, x.host.tensor, part(expected.tensor, 2 * kRows)}};
  reference.linear(host_jobs);
  const std::vector<float> actual = both.get();
  expect_near(actual, expected.values, rounding(3), "a pair");
  for (std::size_t i = kRows * 16; i < 2 * kRows * 16; ++i) EXPECT_EQ(actual[i], 0) << "between the two";
}

// Planned weights lie at even distances, so that one batched product serves all tracks.
TEST_P(DeviceLinear, TakesPlannedWeights) {
  Random random(6);
  ReferenceBackend reference;
  std::vector<WeightSpec> specs;
  for (int track = 0; track < 3; ++track) specs.push_back({"w", WeightRole::matrix, matrices(), 1, 16, 24});
  backend().plan_weights(specs);
  const BothWeights w(backend(), reference, WeightRole::matrix, matrices(), 3, 1, 16, 24, random);
  const OnDevice x(backend(), 3, 20, 24, inner(), random);
  OnDevice y(backend(), 3, 20, 16, inner());
  const LinearJob job{&w.device, x.tensor, y.tensor};
  backend().linear({&job, 1});
  Activation expected(3, 20, 16);
  const LinearJob host_job{&w.host, x.host.tensor, expected.tensor};
  reference.linear({&host_job, 1});
  expect_near(y.get(), expected.values, rounding(3), "planned");
}

// A row's sums are the same among any number of rows that the kernel for few rows takes.
TEST_P(DeviceLinear, FewRowsHangOnTheRowAlone) {
  Random random(7);
  const RandomWeights weights(matrices(), 1, 1, 20, 136, random);
  const TrackWeights w = weights.load(backend());
  constexpr std::int64_t kRows = 16;
  const OnDevice x(backend(), 1, kRows, 136, inner(), random);
  OnDevice all(backend(), 1, kRows, 20, inner()), alone(backend(), 1, kRows, 20, inner());
  const LinearJob job{&w, x.tensor, all.tensor};
  backend().linear({&job, 1});
  const auto row = [](const Tensor& t, std::int64_t r) {
    auto* first = static_cast<std::byte*>(t.data) + static_cast<std::size_t>(r * t.width) * size_of(t.dtype);
    return Tensor{first, 1, 1, t.width, t.width, t.dtype};
  };
  for (std::int64_t r = 0; r < kRows; ++r) {
    const LinearJob one{&w, row(x.tensor, r), row(alone.tensor, r)};
    backend().linear({&one, 1});
  }
  EXPECT_EQ(all.get(), alone.get());
}

}  // namespace
}  // namespace ptrt::testing
