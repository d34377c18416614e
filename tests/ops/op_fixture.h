// What op tests share: one test body runs on every backend of the executable. These are the scalar
// reference, the CPU backend on every instruction set that this machine has, and the CUDA backend by host
// emulation; or the CUDA backend on a GPU. Expected values are float64, tolerances follow from the type of
// the backend's activations.
#pragma once

#include "kernels/cpu/reference_backend.h"
#include "ops/cuda_provider.h"
#include "ops/test_tensors.h"

namespace ptrt::testing {

inline DType activation_dtype(const Backend& backend) {
  return backend.traits().activation_dtype;
}
// Of matrices: a type that the backend keeps as it is.
inline DType matrix_dtype(const Backend& backend) {
  return activation_dtype(backend) == DType::float16 ? DType::float16 : DType::bfloat16;
}
// What rounding a value of up to 1 to the type costs at most; of float32, what sums in it may be off.
inline double unit_roundoff(DType dtype) {
  if (dtype == DType::float32) return 1e-5;
  return dtype == DType::float16 ? 0x1p-11 : 0x1p-8;
}

// Memory for a tensor or a pool: a device's own, or the host's of exactly the size, so that AddressSanitizer
// sees an access past its end. Zeroed.
inline std::shared_ptr<std::byte[]> allocate_exactly(Backend& backend, std::size_t bytes) {
  if (backend.device_groups() != nullptr) return backend.allocate(bytes, "a test");
  return std::shared_ptr<std::byte[]>(new std::byte[bytes]());
}

// A tensor in a backend's memory, and the values it was given, rounded to its type, on the host.
class Array {
 public:
  Array(Backend& backend, std::int64_t tracks, std::int64_t rows, std::int64_t width,
        DType dtype = DType::float32)
      : backend_(backend), host(tracks, rows, width) {
    memory_ = allocate_exactly(backend, host.values.size() * size_of(dtype));
    tensor = {memory_.get(), tracks, rows, width, rows * width, dtype};
  }
  Array(Backend& backend, std::int64_t tracks, std::int64_t rows, std::int64_t width, DType dtype,
        Random& random, float size = 1)
      : Array(backend, tracks, rows, width, dtype) {
    for (float& value : host.values) value = random.uniform(-size, size);
    put();
  }
  // Other memory with the values that the first was given.
  Array(const Array& other)
      : Array(other.backend_, other.tensor.tracks, other.tensor.rows, other.tensor.width,
              other.tensor.dtype) {
    host.values = other.host.values;
    put();
  }
  Array& operator=(const Array&) = delete;

  // Writes the host's values to the backend's memory, rounding them on the host too.
  void put() {
    if (tensor.dtype == DType::float32)
      return backend_.write(std::as_bytes(std::span(host.values)), memory_.get());
    std::vector<std::uint16_t> narrow;
    for (float& value : host.values) {
      value = rounded_to(tensor.dtype, value);
      narrow.push_back(is_float16() ? to_float16(value) : to_bfloat16(value));
    }
    backend_.write(std::as_bytes(std::span(narrow)), memory_.get());
  }
  // What the backend's memory holds now.
  Activation get() const {
    Activation out(tensor.tracks, tensor.rows, tensor.width);
    if (tensor.dtype == DType::float32) {
      backend_.read_back(memory_.get(), std::as_writable_bytes(std::span(out.values)));
      return out;
    }
    std::vector<std::uint16_t> narrow(out.values.size());
    backend_.read_back(memory_.get(), std::as_writable_bytes(std::span(narrow)));
    std::ranges::transform(narrow, out.values.begin(), is_float16() ? from_float16 : from_bfloat16);
    return out;
  }

 private:
  bool is_float16() const { return tensor.dtype == DType::float16; }

  Backend& backend_;
  std::shared_ptr<std::byte[]> memory_;

 public:
  Activation host;
  Tensor tensor;
};

// `count` rows of every track from the first on.
inline Tensor rows_of(const Tensor& x, std::int64_t first, std::int64_t count) {
  auto* data = static_cast<std::byte*>(x.data) + static_cast<std::size_t>(first * x.width) * size_of(x.dtype);
  return {data, x.tracks, count, x.width, x.track_stride, x.dtype};
}

inline const std::string kReference = "reference", kCuda = "cuda", kCudaFloat16 = "cuda_float16";

// The parameter names the backend; the process is set to its instruction set while the test runs.
class OpTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (on_cuda()) {
      CudaForTests cuda = make_cuda_for_tests(
          {.activation_dtype = GetParam() == kCudaFloat16 ? DType::float16 : DType::bfloat16});
      if (cuda.backend == nullptr) GTEST_SKIP() << cuda.missing;
      backend_ = std::move(cuda.backend);
    } else if (!on_reference()) {
      set_simd_target(GetParam());
    }
  }
  void TearDown() override { set_simd_target(""); }

  bool on_cuda() const { return GetParam() == kCuda || GetParam() == kCudaFloat16; }
  bool on_reference() const { return GetParam() == kReference; }

  Backend& backend() { return backend_ == nullptr ? backend_with({.threads = 2}) : *backend_; }
  // Replaces the backend by one with these options; a device has none of them and keeps its one.
  Backend& backend_with(const CpuOptions& options) {
    if (!on_cuda()) backend_ = make_host_backend(options);
    return *backend_;
  }
  std::unique_ptr<Backend> make_host_backend(const CpuOptions& options) const {
    if (on_reference()) return std::make_unique<ReferenceBackend>(options);
    return make_cpu_backend(options);
  }

  DType activations() { return activation_dtype(backend()); }
  DType matrices() { return matrix_dtype(backend()); }
  // Tolerance of a result that is rounded once to the type of activations; `on_host` where that is float32.
  double once_rounded(double on_host) { return on_cuda() ? unit_roundoff(activations()) + 1e-5 : on_host; }

 private:
  std::unique_ptr<Backend> backend_;
};

// For properties of the CPU backend on one instruction set.
class CpuOpTest : public OpTest {
 protected:
  std::unique_ptr<Backend> make_backend(int threads) const { return make_backend({.threads = threads}); }
  std::unique_ptr<Backend> make_backend(const CpuOptions& options) const {
    return make_host_backend(options);
  }
};

inline std::vector<std::string> host_backends(std::vector<std::string> targets) {
  targets.push_back(kReference);
  return targets;
}

// The backends of this executable: CUDA in both types of activations, or in one, for ops on float32. A
// sanitizer sees the same accesses with either type.
inline std::vector<std::string> backends_on(std::vector<std::string> targets, bool both_types = true) {
  std::vector<std::string> names;
  if (cuda_kind() != CudaKind::gpu) names = host_backends(std::move(targets));
  if (cuda_kind() != CudaKind::none) names.push_back(kCuda);
  if (cuda_kind() != CudaKind::none && both_types && !kSanitized) names.push_back(kCudaFloat16);
  return names;
}

// For what is compared with the scalar reference itself.
inline std::vector<std::string> without_reference(std::vector<std::string> names) {
  std::erase(names, kReference);
  return names;
}

#define PTRT_EVERY_BACKEND(suite) \
  INSTANTIATE_TEST_SUITE_P(Every, suite, ::testing::ValuesIn(backends_on(op_targets())), param_name)
#define PTRT_EVERY_BACKEND_IN_ONE_TYPE(suite) \
  INSTANTIATE_TEST_SUITE_P(Every, suite, ::testing::ValuesIn(backends_on(op_targets(), false)), param_name)

}  // namespace ptrt::testing
