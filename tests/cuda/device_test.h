// Op tests for backends with a memory and types of their own: one body runs on the CPU backend and on the
// CUDA backend, and compares with the scalar reference. The executable says where the CUDA backend comes
// from: the host emulation, or a GPU.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/scalar_types.h"
#include "kernels/cpu/make_cpu_backend.h"
#include "kernels/cpu/reference_backend.h"
#include "kernels/cuda/plugin.h"
#include "op_test.h"

namespace ptrt::testing {

// The CUDA backend of this executable; null with a reason when there is none here.
struct CudaForTests {
  std::unique_ptr<Backend> backend;
  std::string missing;
};
CudaForTests make_cuda_for_tests(const CudaOptions& options = {});
// Steps that were replayed so far, where this executable can tell.
bool counts_graph_launches_for_tests();
std::uint64_t graph_launches_for_tests();

// Of matrices: the type that a backend keeps as it is.
inline DType matrix_type_of(const Backend& backend) {
  return backend.traits().activation_dtype == DType::float16 ? DType::float16 : DType::bfloat16;
}
// Half a unit in the last place of a backend's inner type, of values up to 1.
inline double half_unit_of(const Backend& backend) {
  switch (backend.traits().activation_dtype) {
    case DType::float16:
      return 0x1p-11;
    case DType::bfloat16:
      return 0x1p-8;
    default:
      return 1e-6;
  }
}
inline float rounded_to(DType dtype, float value) {
  if (dtype == DType::float32) return value;
  return dtype == DType::float16 ? from_float16(to_float16(value)) : from_bfloat16(to_bfloat16(value));
}

inline const std::string kCpu = "cpu", kCuda = "cuda", kCudaFloat16 = "cuda_float16";

class DeviceTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() == kCpu) {
      backend_ = make_cpu_backend({.threads = 1});
      return;
    }
    CudaForTests cuda = make_cuda_for_tests(
        {.activation_dtype = GetParam() == kCudaFloat16 ? DType::float16 : DType::bfloat16});
    if (cuda.backend == nullptr) GTEST_SKIP() << cuda.missing;
    backend_ = std::move(cuda.backend);
  }
  Backend& backend() { return *backend_; }
  bool on_cuda() const { return GetParam() != kCpu; }
  DType inner() { return backend_->traits().activation_dtype; }
  DType matrices() { return matrix_type_of(*backend_); }
  // What one rounding of a result of this size may cost: half a unit in the last place of the inner type, and
  // some of float32.
  double rounding(double size) { return size * half_unit_of(*backend_) + 1e-5; }

 private:
  std::unique_ptr<Backend> backend_;
};

// For ops that know the inner type, and for those that do not. A sanitizer sees the same accesses with
// either.
inline std::vector<std::string> devices_and_types() {
  return kSanitized ? std::vector{kCpu, kCuda} : std::vector{kCpu, kCuda, kCudaFloat16};
}
#define PTRT_EVERY_DEVICE_AND_TYPE(suite) \
  INSTANTIATE_TEST_SUITE_P(Every, suite, ::testing::ValuesIn(devices_and_types()), param_name)
#define PTRT_EVERY_DEVICE(suite) \
  INSTANTIATE_TEST_SUITE_P(Every, suite, ::testing::Values(kCpu, kCuda), param_name)

// An activation in a backend's memory, of exactly its size, and the same values (as that type has them) on
// the host, where the reference reads them.
class OnDevice {
 public:
  OnDevice(Backend& backend, std::int64_t tracks, std::int64_t rows, std::int64_t width, DType dtype)
      : backend_(backend), host(tracks, rows, width) {
    memory_ = backend.allocate(host.values.size() * size_of(dtype), "a test");
    tensor = {memory_.get(), tracks, rows, width, rows * width, dtype};
  }
  OnDevice(Backend& backend, std::int64_t tracks, std::int64_t rows, std::int64_t width, DType dtype,
           Random& random, float size = 1)
      : OnDevice(backend, tracks, rows, width, dtype) {
    for (float& value : host.values) value = random.uniform(-size, size);
    put();
  }

  // Sends the host's values, rounding them there too.
  void put() {
    std::vector<std::uint16_t> narrow(host.values.size());
    if (tensor.dtype == DType::float32)
      return backend_.write(std::as_bytes(std::span(host.values)), memory_.get());
    for (std::size_t i = 0; i < narrow.size(); ++i) {
      host.values[i] = rounded_to(tensor.dtype, host.values[i]);
      narrow[i] = is_float16() ? to_float16(host.values[i]) : to_bfloat16(host.values[i]);
    }
    backend_.write(std::as_bytes(std::span(narrow)), memory_.get());
  }
  // What the device holds now.
  std::vector<float> get() const {
    std::vector<float> values(host.values.size());
    if (tensor.dtype == DType::float32) {
      backend_.read_back(memory_.get(), std::as_writable_bytes(std::span(values)));
      return values;
    }
    std::vector<std::uint16_t> narrow(values.size());
    backend_.read_back(memory_.get(), std::as_writable_bytes(std::span(narrow)));
    std::ranges::transform(narrow, values.begin(), is_float16() ? from_float16 : from_bfloat16);
    return values;
  }

 private:
  bool is_float16() const { return tensor.dtype == DType::float16; }

  Backend& backend_;
  std::shared_ptr<std::byte[]> memory_;

 public:
  Activation host;
  Tensor tensor;
};

// Weights as loaded by a backend and by the reference. The CUDA backend rounds matrices to its inner type, so
// tests take weights of that type, except where the conversion is what is tested.
struct BothWeights {
  BothWeights(Backend& backend, ReferenceBackend& reference, WeightRole role, DType dtype,
              std::int64_t tracks, std::int64_t count, std::int64_t out, std::int64_t in, Random& random) {
    const RandomWeights weights(dtype, tracks, count, out, in, random);
    device = weights.load(backend, role);
    host = weights.load(reference, role);
  }
  TrackWeights device, host;
};

inline void expect_near(std::span<const float> actual, std::span<const float> expected, double tolerance,
                        const std::string& where) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i)
    ASSERT_NEAR(actual[i], expected[i], tolerance * std::max(1.0f, std::abs(expected[i])))
        << where << ", element " << i;
}

}  // namespace ptrt::testing
