#include "kernels/cuda/host/weight_loader.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/base/scalar_types.h"
#include "kernels/cuda/base/cuda_check.h"

namespace ptrt::cuda {
namespace {

constexpr std::size_t kAlignment = 256;
constexpr std::size_t kPieceBytes = std::size_t{16} << 20;  // staged on the host at once

std::size_t aligned(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

DType kept_dtype(const WeightSpec& spec, DType activation_dtype) {
  if (size_of(spec.dtype) == 1)
    throw_bad_input("{}: the CUDA backend takes no {} weights; convert the model, or use --backend cpu",
                    spec.name, to_string(spec.dtype));
  switch (spec.role) {
    case WeightRole::matrix:
    case WeightRole::tied_embedding:
      return activation_dtype;
    case WeightRole::embedding:
      return spec.dtype;
    case WeightRole::router:
    case WeightRole::vector:
      return DType::float32;
  }
  throw_failure("{}: a weight of no known role", spec.name);
}

std::size_t kept_bytes(const WeightSpec& spec, DType activation_dtype) {
  return static_cast<std::size_t>(spec.count * spec.out * spec.in) *
         size_of(kept_dtype(spec, activation_dtype));
}

float to_float(DType dtype, const std::byte* from) {
  if (dtype == DType::float32) {
    float value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return dtype == DType::bfloat16 ? from_bfloat16(bits) : from_float16(bits);
}

void convert(DType from_type, std::span<const std::byte> from, DType to_type, std::span<std::byte> to) {
  const std::size_t from_size = size_of(from_type), to_size = size_of(to_type);
  for (std::size_t i = 0; i * from_size < from.size(); ++i) {
    const float value = to_float(from_type, from.data() + i * from_size);
    const std::uint16_t narrow = to_type == DType::float16 ? to_float16(value) : to_bfloat16(value);
    if (to_type == DType::float32)
      std::memcpy(to.data() + i * to_size, &value, sizeof value);
    else
      std::memcpy(to.data() + i * to_size, &narrow, sizeof narrow);
  }
}

}  // namespace

void WeightLoader::plan(std::span<const WeightSpec> specs) {
  std::size_t total = 0;
  for (const WeightSpec& spec : specs) total += aligned(kept_bytes(spec, activation_dtype_));
  memory_.push_back(allocate_device(total, "the weights"));
  next_ = memory_.back().get();
  left_ = total;
}

std::byte* WeightLoader::allocate(std::size_t bytes, const std::string& what) {
  if (aligned(bytes) > left_) {  // not planned
    memory_.push_back(allocate_device(aligned(bytes), what));
    return memory_.back().get();
  }
  std::byte* piece = next_;
  next_ += aligned(bytes);
  left_ -= aligned(bytes);
  return piece;
}

Weight WeightLoader::load(const WeightSpec& spec, WeightSource& source) {
  PTRT_CHECK(spec.count >= 1 && spec.out >= 1 && spec.in >= 1);
  const DType kept = kept_dtype(spec, activation_dtype_);
  const std::size_t bytes = kept_bytes(spec, activation_dtype_);
  std::byte* to = allocate(bytes, spec.name);

  const std::int64_t rows = spec.count * spec.out;
  const std::size_t stored_row = static_cast<std::size_t>(spec.in) * size_of(spec.dtype);
  const std::size_t kept_row = static_cast<std::size_t>(spec.in) * size_of(kept);
  const std::int64_t step = std::max<std::int64_t>(1, static_cast<std::int64_t>(kPieceBytes / stored_row));
  for (std::int64_t first = 0; first < rows; first += step) {
    const auto count = static_cast<std::size_t>(std::min(step, rows - first));
    stored_.resize(count * stored_row);
    source.read(first, stored_);
    const std::byte* from = stored_.data();
    if (kept != spec.dtype) {
      kept_.resize(count * kept_row);
      convert(spec.dtype, stored_, kept, kept_);
      from = kept_.data();
    }
    std::byte* piece = to + static_cast<std::size_t>(first) * kept_row;
    PTRT_CUDA_CHECK(cudaMemcpyAsync(piece, from, count * kept_row, cudaMemcpyHostToDevice, stream_.get()));
    stream_.wait();  // before the staging buffer is overwritten
  }
  bytes_ += bytes;
  return {to, kept, spec.count, spec.out, spec.in};
}

}  // namespace ptrt::cuda
