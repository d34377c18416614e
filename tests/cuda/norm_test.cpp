#include "device_test.h"

namespace ptrt::testing {
namespace {

class DeviceNorm : public DeviceTest {};
PTRT_EVERY_DEVICE_AND_TYPE(DeviceNorm);

struct Case {
  std::int64_t tracks, rows, width;
};
const std::vector<Case> kCases{{3, 1, 1}, {2, 5, 10}, {1, 3, 37}, {2, 2, 64}, {18, 2, 40}, {1, 2, 1500}};
constexpr float kEps = 1e-5f;

TEST_P(DeviceNorm, OfTheStreamAndOfInnerRows) {
  for (const auto& [tracks, rows, width] : kCases) {
    Random random(static_cast<unsigned>(width));
    ReferenceBackend reference;
    const BothWeights w(backend(), reference, WeightRole::vector, DType::float32, tracks, 1, 1, width,
                        random);
    const std::string where = fmt::format("tracks {} rows {} width {}", tracks, rows, width);
    OnDevice stream(backend(), tracks, rows, width, DType::float32, random, 3);
    OnDevice rows_in(backend(), tracks, rows, width, inner(), random, 3);
    OnDevice out(backend(), tracks, rows, width, inner());
    backend().rms_norm(w.device, kEps, stream.tensor, out.tensor);
    backend().rms_norm(w.device, kEps, stream.tensor, stream.tensor);
    backend().rms_norm(w.device, kEps, rows_in.tensor, rows_in.tensor);
    Activation expected(stream.host), expected_inner(rows_in.host);
    reference.rms_norm(w.host, kEps, expected.tensor, expected.tensor);
    reference.rms_norm(w.host, kEps, expected_inner.tensor, expected_inner.tensor);
    expect_near(out.get(), expected.values, rounding(1), where + ", to inner rows");
    expect_near(stream.get(), expected.values, 1e-5, where + ", in place");
    expect_near(rows_in.get(), expected_inner.values, rounding(1), where + ", inner rows in place");
  }
}

TEST_P(DeviceNorm, ReadsOneStreamForAllTracks) {
  Random random(2);
  ReferenceBackend reference;
  const BothWeights w(backend(), reference, WeightRole::vector, DType::bfloat16, 3, 1, 1, 24, random);
  const OnDevice x(backend(), 1, 2, 24, DType::float32, random);
  OnDevice out(backend(), 3, 2, 24, DType::float32);
  backend().rms_norm(w.device, kEps, x.tensor.broadcast(3), out.tensor);
  Activation expected(3, 2, 24);
  reference.rms_norm(w.host, kEps, x.host.tensor.broadcast(3), expected.tensor);
  expect_near(out.get(), expected.values, 1e-5, "broadcast");
}

// h += a of inner rows, or of float32 ones: what ranks that share a track have added up.
void check_after_the_sum(Backend& backend, const Case& shape, DType added, double inner_rounding) {
  const auto& [tracks, rows, width] = shape;
  Random random(static_cast<unsigned>(width));
  ReferenceBackend reference;
  const BothWeights w(backend, reference, WeightRole::vector, DType::float32, tracks, 1, 1, width, random);
  const std::string where =
      fmt::format("{}, tracks {} rows {} width {}", to_string(added), tracks, rows, width);
  const OnDevice a(backend, tracks, rows, width, added, random);
  OnDevice h(backend, tracks, rows, width, DType::float32, random);
  OnDevice h_in_place(backend, tracks, rows, width, DType::float32);
  h_in_place.host.values = h.host.values;
  h_in_place.put();
  OnDevice out(backend, tracks, rows, width, backend.traits().activation_dtype);
  backend.add_rms_norm(a.tensor, h.tensor, w.device, kEps, out.tensor);
  backend.add_rms_norm(a.tensor, h_in_place.tensor, w.device, kEps, h_in_place.tensor);
  Activation sum(h.host), normed(tracks, rows, width);
  reference.add_rms_norm(a.host.tensor, sum.tensor, w.host, kEps, normed.tensor);
  expect_near(h.get(), sum.values, 0, where + ", the sum");
  expect_near(out.get(), normed.values, inner_rounding, where + ", the norm");
  expect_near(h_in_place.get(), normed.values, 1e-5, where + ", in place");
}

TEST_P(DeviceNorm, AfterTheSum) {
  for (const Case& shape : kCases)
    for (const DType added : {inner(), DType::float32})
      check_after_the_sum(backend(), shape, added, rounding(1));
}

}  // namespace
}  // namespace ptrt::testing
