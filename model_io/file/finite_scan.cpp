#include "model_io/file/finite_scan.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/base/scalar_types.h"
#include "kernels/cpu/weights/packed.h"
#include "kernels/float8.h"

namespace ptrt {
namespace {

constexpr std::size_t kBlock = 1024;  // elements looked at together

template <typename Bits>
Bits load(const std::byte* from) {
  Bits bits;
  std::memcpy(&bits, from, sizeof(bits));
  return bits;
}

// Of a place in panels: the row of the tensor, and the column, or the group of a scale.
struct Place {
  std::int64_t row, column;
};

Place place_in_panels(const PackedLayout& layout, std::int64_t at) {
  const std::int64_t panel = at / layout.panel_bytes(), within = at % layout.panel_bytes();
  const std::int64_t first_row = panel / layout.panels() * layout.out + panel % layout.panels() * kPanelOuts;
  if (layout.dtype == DType::int8) {
    const std::int64_t scale = within % kGroupPair / 2;
    return {first_row + scale % kPanelOuts, within / kGroupPair * 2 + scale / kPanelOuts};
  }
  const std::int64_t element = within / static_cast<std::int64_t>(size_of(layout.dtype));
  const std::int64_t in_word = layout.dtype == DType::bfloat16 ? 2 : 1, word = element / in_word;
  return {first_row + word % kPanelOuts, word / kPanelOuts * in_word + element % in_word};
}

}  // namespace

FiniteScan::FiniteScan(const StoredTensor& tensor, Of of) : tensor_(tensor), of_(of) {}

void FiniteScan::add(std::size_t at, std::span<const std::byte> bytes) {
  constexpr Format<std::uint16_t> kScale{0x7C00, 0x8000};
  if (of_ == Of::scales && tensor_.dtype == DType::float8_e4m3)
    return scan<std::uint32_t>(at, bytes, {0x7F800000, 0x80000000});
  if (of_ == Of::scales) return scan<std::uint16_t>(at, bytes, kScale);
  switch (tensor_.dtype) {
    case DType::float32:
      return scan<std::uint32_t>(at, bytes, {0x7F800000, 0});
    case DType::float16:
      return scan<std::uint16_t>(at, bytes, {0x7C00, 0});
    case DType::bfloat16:
      return scan<std::uint16_t>(at, bytes, {0x7F80, 0});
    case DType::int8:
      if (tensor_.layout == WeightLayout::panels) scan_scale_lines(at, bytes);
      return;
    case DType::float8_e4m3:
      return scan_float8(at, bytes);
  }
}

// An exponent of all ones, plus its lowest bit, carries into the sign bit.
template <typename Bits>
void FiniteScan::scan(std::size_t at, std::span<const std::byte> bytes, Format<Bits> format) {
  constexpr auto kSign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  const auto lowest = static_cast<Bits>(format.exponent & -format.exponent);
  const auto is_bad = [&](Bits bits) {
    const auto carry = static_cast<Bits>((bits & format.exponent) + lowest);
    return static_cast<Bits>((carry & kSign) | (bits & format.wrong));
  };
  PTRT_CHECK(at % sizeof(Bits) == 0 && bytes.size() % sizeof(Bits) == 0);
  for (std::size_t begin = 0; begin < bytes.size(); begin += kBlock * sizeof(Bits)) {
    const std::size_t end = std::min(begin + kBlock * sizeof(Bits), bytes.size());
    Bits any = 0;
    for (std::size_t i = begin; i < end; i += sizeof(Bits))
      any = static_cast<Bits>(any | is_bad(load<Bits>(&bytes[i])));
    if (any == 0) continue;
    for (std::size_t i = begin; i < end; i += sizeof(Bits)) {
      const auto bits = load<Bits>(&bytes[i]);
      if (is_bad(bits) == 0) continue;
      if constexpr (sizeof(Bits) == 4)
        found(at + i, std::bit_cast<float>(bits));
      else
        found(at + i, tensor_.dtype == DType::bfloat16 ? from_bfloat16(bits) : from_float16(bits));
    }
  }
}

void FiniteScan::scan_scale_lines(std::size_t at, std::span<const std::byte> bytes) {
  const auto panel =
      static_cast<std::size_t>(PackedLayout{tensor_.dtype, 1, tensor_.shape.back()}.panel_bytes());
  constexpr auto kPair = static_cast<std::size_t>(kGroupPair), kLine = static_cast<std::size_t>(kScaleLine);
  for (std::size_t i = 0; i < bytes.size();) {
    const std::size_t in_panel = (at + i) % panel, in_pair = in_panel % kPair;
    if (in_pair < kLine) {
      const std::size_t length = std::min(kLine - in_pair, bytes.size() - i);
      scan<std::uint16_t>(at + i, bytes.subspan(i, length), {0x7C00, 0x8000});
      i += length;
    } else {
      i += std::min(kPair - in_pair, panel - in_panel);
    }
  }
}

void FiniteScan::scan_float8(std::size_t at, std::span<const std::byte> bytes) {
  for (std::size_t begin = 0; begin < bytes.size(); begin += kBlock) {
    const auto block = bytes.subspan(begin, std::min(kBlock, bytes.size() - begin));
    bool any = false;
    for (const std::byte code : block) any |= is_float8_nan(static_cast<std::uint8_t>(code));
    if (!any) continue;
    for (std::size_t i = 0; i < block.size(); ++i)
      if (const auto code = static_cast<std::uint8_t>(block[i]); is_float8_nan(code))
        found(at + begin + i, from_float8(code));
  }
}

void FiniteScan::found(std::size_t at, float value) {
  if (count_++ > 0 && at > first_at_) return;
  first_at_ = at;
  first_value_ = value;
}

std::vector<std::int64_t> FiniteScan::first() const {
  PTRT_CHECK(count_ > 0);
  const auto at = static_cast<std::int64_t>(first_at_);
  const std::vector<std::int64_t>& shape = tensor_.shape;
  Place place{};
  if (of_ == Of::content && tensor_.layout == WeightLayout::panels) {
    place = place_in_panels({tensor_.dtype, shape[shape.size() - 2], shape.back()}, at);
  } else {
    const bool scales = has_scales(), float8 = tensor_.dtype == DType::float8_e4m3;
    const std::int64_t width = !scales ? shape.back() : float8 ? 1 : int8_groups(shape.back());
    const std::size_t bytes = !scales  ? size_of(tensor_.dtype)
                              : float8 ? sizeof(float)
                                       : sizeof(std::uint16_t);
    const std::int64_t element = at / static_cast<std::int64_t>(bytes);
    place = {element / width, element % width};
  }
  std::vector<std::int64_t> index(shape.size());
  index.back() = place.column;
  for (std::size_t i = shape.size() - 1; i-- > 0; place.row /= shape[i]) index[i] = place.row % shape[i];
  return index;
}

std::string FiniteScan::describe() const {
  if (count_ == 0) return "";
  const bool one = count_ == 1;
  return fmt::format("{} {}{} {} {}; the first is [{}]: {}", count_, has_scales() ? "scale" : "element",
                     one ? "" : "s", one ? "is" : "are",
                     has_scales() ? "negative or not finite" : "not finite", fmt::join(first(), ", "),
                     first_value_);
}

}  // namespace ptrt
