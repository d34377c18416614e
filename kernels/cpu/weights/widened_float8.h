// A float8 weight as one of a type that products take here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/weight_source.h"

namespace ptrt {

// The weight as it is once it is widened; of other types than float8, itself.
WeightSpec widened(const WeightSpec& spec);

// Reads a float8 weight as one of its type WeightSpec::widened.
class WidenedFloat8 final : public WeightSource {
 public:
  // `float8` is the source of a weight as `spec` says, and outlives this object.
  WidenedFloat8(const WeightSpec& spec, WeightSource& float8) : spec_(spec), float8_(float8) {}

  // Throws bad_input on a scale that does not fit that type: it was another when the type was chosen.
  void read(std::int64_t first, std::span<std::byte> rows) override;
  void read_scales(std::int64_t first, std::span<std::byte> scales) override;  // there are none: never called

 private:
  const WeightSpec& spec_;
  WeightSource& float8_;
};

}  // namespace ptrt
