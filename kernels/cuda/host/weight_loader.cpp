#include "kernels/cuda/host/weight_loader.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/base/error.h"
#include "kernels/base/scalar_types.h"
#include "kernels/cuda/base/cuda_check.h"
#include "kernels/cuda/host/weight_layout.h"
#include "kernels/int8.h"

namespace ptrt::cuda {
namespace {

constexpr std::int64_t kPieceBytes = std::int64_t{16} << 20;  // staged on the host at once

DType kept_dtype(const WeightSpec& spec, DType activation_dtype) {
  const auto kept = kept_on_device(spec.role, spec.dtype, activation_dtype);
  if (!kept)
    throw_bad_input("{}: {} is for matrices; expected a floating type", spec.name, to_string(spec.dtype));
  return *kept;
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

// Whether a row has the code of NaN, of either sign.
bool has_nan(std::span<const std::byte> codes) {
  bool found = false;
  for (const std::byte code : codes) found |= (code & std::byte{0x7F}) == std::byte{0x7F};
  return found;
}

}  // namespace

void WeightLoader::plan(std::span<const WeightSpec> specs) {
  std::int64_t total = 0;
  for (const WeightSpec& spec : specs)
    total += device_weight_bytes(kept_dtype(spec, activation_dtype_), spec.count, spec.out, spec.in).taken();
  memory_.push_back(allocate_device(static_cast<std::size_t>(total), "the weights"));
  next_ = memory_.back().get();
  left_ = total;
}

std::byte* WeightLoader::allocate(std::int64_t bytes, const std::string& what) {
  if (bytes > left_) {  // not planned
    memory_.push_back(allocate_device(static_cast<std::size_t>(bytes), what));
    return memory_.back().get();
  }
  std::byte* piece = next_;
  next_ += bytes;
  left_ -= bytes;
  return piece;
}

void WeightLoader::upload(std::span<const std::byte> from, std::byte* to) {
  PTRT_CUDA_CHECK(cudaMemcpyAsync(to, from.data(), from.size(), cudaMemcpyHostToDevice, stream_.get()));
  stream_.wait();  // before the staging buffer is overwritten
}

Weight WeightLoader::load(const WeightSpec& spec, WeightSource& source) {
  PTRT_CHECK(spec.count >= 1 && spec.out >= 1 && spec.in >= 1);
  const DType kept = kept_dtype(spec, activation_dtype_);
  const DeviceWeightBytes bytes = device_weight_bytes(kept, spec.count, spec.out, spec.in);
  std::byte* to = allocate(bytes.taken(), spec.name);
  Weight weight{to, kept, spec.count, spec.out, spec.in};
  if (bytes.scales > 0) weight.scales = to + bytes.scales_at();
  // Blocks of int8's scales begin anew with each matrix.
  const std::int64_t matrices = kept == DType::int8 ? spec.count : 1;
  const std::int64_t rows = spec.count * spec.out / matrices;
  const std::int64_t row_bytes = bytes.elements / (spec.count * spec.out);
  const std::int64_t stored_row = spec.in * static_cast<std::int64_t>(size_of(spec.dtype));
  const std::int64_t step = std::max<std::int64_t>(1, kPieceBytes / stored_row / kScaleRows) * kScaleRows;
  for (std::int64_t matrix = 0; matrix < matrices; ++matrix)
    for (std::int64_t row = 0; row < rows; row += step) {
      const std::int64_t count = std::min(step, rows - row), first = matrix * rows + row;
      stored_.resize(static_cast<std::size_t>(count * stored_row));
      source.read(first, stored_);
      upload(kept_rows(spec, kept), to + first * row_bytes);
      std::byte* scales = to + bytes.scales_at();
      if (kept == DType::int8)
        upload(
            int8_scales(spec.in, first, count, source),
            scales + (matrix * scale_blocks(rows, spec.in) + scale_blocks(row, spec.in)) * kScaleBlockBytes);
      if (kept == DType::float8_e4m3)
        upload(float8_scales(spec.in, first, count, source), scales + first * std::int64_t{sizeof(float)});
    }
  bytes_ += static_cast<std::size_t>(bytes.elements + bytes.scales);
  return weight;
}

std::span<const std::byte> WeightLoader::kept_rows(const WeightSpec& spec, DType kept) {
  if (is_8bit(kept)) {
    const auto in = static_cast<std::size_t>(spec.in),
               stride = static_cast<std::size_t>(row_stride<Int8>(spec.in));
    if (stride == in) return stored_;
    kept_.assign(stored_.size() / in * stride, std::byte{0});
    for (std::size_t row = 0; row * in < stored_.size(); ++row)
      std::memcpy(&kept_[row * stride], &stored_[row * in], in);
    return kept_;
  }
  if (kept == spec.dtype) return stored_;
  kept_.resize(stored_.size() / size_of(spec.dtype) * size_of(kept));
  convert(spec.dtype, stored_, kept, kept_);
  return kept_;
}

// In blocks, the last one filled up with zeros.
std::span<const std::byte> WeightLoader::int8_scales(std::int64_t in, std::int64_t first, std::int64_t count,
                                                     WeightSource& source) {
  const std::int64_t groups = int8_groups(in);
  std::vector<std::uint16_t> rows(static_cast<std::size_t>(count * groups));
  source.read_scales(first, std::as_writable_bytes(std::span(rows)));
  std::vector<std::uint16_t> blocks(static_cast<std::size_t>(scale_blocks(count, in)) * kScaleBlockBytes / 2);
  for (std::int64_t row = 0; row < count; ++row)
    for (std::int64_t group = 0; group < groups; ++group)
      blocks[static_cast<std::size_t>(scale_index(in, row, group))] =
          rows[static_cast<std::size_t>(row * groups + group)];
  const auto bytes = std::as_bytes(std::span(blocks));
  scales_.assign(bytes.begin(), bytes.end());
  return scales_;
}

// Kernels know no code of NaN. A row that has one makes only NaNs, and so does a scale that is one.
std::span<const std::byte> WeightLoader::float8_scales(std::int64_t in, std::int64_t first,
                                                       std::int64_t count, WeightSource& source) {
  const std::span<const std::byte> codes = stored_;
  scales_.resize(static_cast<std::size_t>(count) * sizeof(float));
  source.read_scales(first, scales_);
  for (std::size_t row = 0; row < static_cast<std::size_t>(count); ++row) {
    constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
    const auto width = static_cast<std::size_t>(in);
    if (has_nan(codes.subspan(row * width, width)))
      std::memcpy(&scales_[row * sizeof kNan], &kNan, sizeof kNan);
  }
  return scales_;
}

}  // namespace ptrt::cuda
