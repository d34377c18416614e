#include "model_io/shard/random_init.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/progress.h"
#include "kernels/base/scalar_types.h"
#include "model_io/file/crc32c.h"

namespace ptrt {
namespace {

// The finalizer of splitmix64: bijective, every output bit depends on every input bit.
constexpr std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

constexpr std::uint64_t kGoldenGamma = 0x9e3779b97f4a7c15u;

// The sum of four independent 16-bit uniforms, centred: near to normal, within ±3.46 standard
// deviations, and an exact integer, so the same on every machine.
constexpr float near_normal(std::uint64_t bits) {
  const auto sum = static_cast<std::int32_t>((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) +
                                             (bits >> 48));
  return static_cast<float>(sum - 2 * 0xffff);
}

// Its standard deviation: sqrt(4 · (2^32 - 1) / 12).
constexpr double kNearNormalDeviation = 37837.22722;

// Of a bias: half that of what it is added to, so that it matters and does not prevail.
constexpr double kBiasDeviation = 0.5;

double deviation(const ModelConfig& config, const TensorSpec& spec) {
  const double xavier = 1 / std::sqrt(static_cast<double>(spec.shape.back()));
  const double inner = spec.is_bias() ? kBiasDeviation : xavier;
  const bool writes_residual = spec.path.ends_with("/wo") || spec.path.ends_with("/w_down");
  return writes_residual || spec.id == TensorId::bo
             ? inner / std::sqrt(2.0 * static_cast<double>(config.layers))
             : inner;
}

// Elements are independent of each other, so threads divide them: a whole model may have to be
// filled.
template <typename Element, typename Convert>
void fill(std::span<std::byte> out, const Convert& value_of) {
  constexpr std::size_t kWorthAThread = 1 << 17;
  auto* elements = reinterpret_cast<Element*>(out.data());
  const std::size_t n = out.size() / sizeof(Element);
  const auto fill_part = [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) elements[i] = value_of(i);
  };
  constexpr unsigned kMostThreads = 16;  // of each rank
  const std::size_t threads = std::clamp<std::size_t>(
      n / kWorthAThread, 1, std::clamp(std::thread::hardware_concurrency(), 1u, kMostThreads));
  std::vector<std::jthread> others;
  for (std::size_t t = 1; t < threads; ++t)
    others.emplace_back(fill_part, n * t / threads, n * (t + 1) / threads);
  fill_part(0, n / threads);
}

template <typename ValueOf>
void fill_as(DType dtype, std::span<std::byte> out, const ValueOf& value_of) {
  switch (dtype) {
    case DType::float32:
      return fill<float>(out, value_of);
    case DType::bfloat16:
      return fill<std::uint16_t>(out, [&](std::size_t i) { return to_bfloat16(value_of(i)); });
    case DType::float16:
      return fill<std::uint16_t>(out, [&](std::size_t i) { return to_float16(value_of(i)); });
    case DType::int8:
    case DType::float8_e4m3:
      throw_failure("random weights are of a floating type");
  }
}

// A tensor of random elements.
class RandomTensor final : public VerifiedSource {
 public:
  RandomTensor(const ModelConfig& config, const TensorSpec& spec, std::uint64_t seed, DType dtype)
      : config_(config),
        spec_(spec),
        seed_(seed),
        dtype_(dtype),
        crc_(static_cast<std::size_t>(spec.elements()) * size_of(dtype)) {}

  DType dtype() const override { return dtype_; }
  void read(std::int64_t first, std::span<std::byte> rows) override {
    const std::int64_t element = first * spec_.shape.back();
    random_elements(config_, spec_, seed_, dtype_, element, rows);
    crc_.add(static_cast<std::size_t>(element) * size_of(dtype_), rows);
  }
  void read_scales(std::int64_t, std::span<std::byte>) override {
    throw_failure("{} has no scales", spec_.path);
  }
  void read_columns(std::int64_t first, std::int64_t count, std::int64_t column, std::int64_t columns,
                    std::span<std::byte> out) override {
    const std::size_t width = static_cast<std::size_t>(columns) * size_of(dtype_);
    for (std::int64_t r = 0; r < count; ++r)
      random_elements(config_, spec_, seed_, dtype_, (first + r) * spec_.shape.back() + column,
                      out.subspan(static_cast<std::size_t>(r) * width, width));
  }
  void read_scale_columns(std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                          std::span<std::byte>) override {
    throw_failure("{} has no scales", spec_.path);
  }
  void verify() const override {}
  std::vector<ReadContent> contents() const override {
    const std::size_t total = static_cast<std::size_t>(spec_.elements()) * size_of(dtype_);
    return {{total, crc_.added(), crc_.value(), {}, false}};
  }

 private:
  const ModelConfig& config_;
  const TensorSpec& spec_;
  std::uint64_t seed_;
  DType dtype_;
  Crc32cOfPieces crc_;
};

}  // namespace

void random_elements(const ModelConfig& config, const TensorSpec& spec, std::uint64_t seed, DType dtype,
                     std::int64_t first, std::span<std::byte> out) {
  PTRT_CHECK(out.size() % size_of(dtype) == 0);
  note_progress();
  if (spec.role == WeightRole::vector && !spec.is_bias())
    return fill_as(dtype, out, [](std::size_t) { return 1.0f; });
  const std::uint64_t stream = mix(XXH3_64bits_withSeed(spec.path.data(), spec.path.size(), seed));
  const auto scale = static_cast<float>(deviation(config, spec) / kNearNormalDeviation);
  const std::uint64_t origin = stream + static_cast<std::uint64_t>(first) * kGoldenGamma;
  fill_as(dtype, out, [=](std::size_t i) { return scale * near_normal(mix(origin + i * kGoldenGamma)); });
}

std::unique_ptr<VerifiedSource> random_source(const ModelConfig& config, const TensorSpec& spec,
                                              std::uint64_t seed, DType dtype) {
  return std::make_unique<RandomTensor>(config, spec, seed, dtype);
}

}  // namespace ptrt
