// What a backend loads: a weight's use, shape and type, and the source of its content.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "kernels/tensor.h"

namespace ptrt {

// The use of a tensor, from which a backend chooses how to store it.
enum class WeightRole : std::uint8_t {
  matrix,     // right-hand side of linear() or moe_ffn(); kept in its storage type, or in the one that the
              // products take: rounded to bfloat16 or quantised on load
  router,     // of a mixture of experts: a matrix whose products always take float32
  embedding,  // looked up by row, nothing else; kept in its storage type
  tied_embedding,  // the head's matrix, looked up by row too; never int8, else kept as a matrix is. Where the
                   // other products take int8, its own take bfloat16 if it is stored so and the
                   // processor multiplies that natively, else float32
  vector,          // norm weights and biases; widened to float32 at load
};

// Whether products multiply by it, so that the CPU keeps it in panels.
constexpr bool is_multiplied(WeightRole role) {
  return role == WeightRole::matrix || role == WeightRole::router || role == WeightRole::tied_embedding;
}

struct WeightSpec {
  std::string name;  // as in the file; for messages
  WeightRole role = WeightRole::matrix;
  DType dtype = DType::float32;  // as stored in the file
  std::int64_t count = 1, out = 0, in = 0;
  // Of float8: bfloat16 where that holds every element exactly, else float32. What the weight becomes in a backend
  // whose products do not take float8.
  DType widened = DType::float32;
};

// Bytes of the scales of a row of so many columns; 0 for types that have none.
constexpr std::size_t row_scale_bytes(DType dtype, std::int64_t columns) {
  if (dtype == DType::float8_e4m3) return sizeof(float);
  return dtype == DType::int8 ? static_cast<std::size_t>((columns + kInt8Group - 1) / kInt8Group) * 2 : 0;
}

// How the elements of a weight lie in memory or in a file.
enum class WeightLayout : std::uint8_t { rows, panels };  // row-major; as in kernels/cpu/weights/packed.h

// The whole content of a weight, mapped from its file. A backend may use it for as long as it holds
// `data`.
struct MappedWeight {
  std::shared_ptr<const std::byte> data;  // read-only; panels 64-byte aligned, rows as their elements need
  std::size_t bytes = 0;                  // in the weight's stored type
};

// Where a weight's content comes from while it is loaded: count · out rows of `in` elements, as
// stored.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // Fills `rows` with whole rows from `first` on (C order, this machine's byte order). A backend
  // asks for every row exactly once; several threads may ask at the same time.
  virtual void read(std::int64_t first, std::span<std::byte> rows) = 0;
  // int8: the float16 scales of whole rows from `first` on, in / kInt8Group (rounded up) a row. float8: their float32
  // scales, one a row. No other type has scales.
  virtual void read_scales(std::int64_t first, std::span<std::byte> scales) = 0;

  // The content mapped from its file; none where the file does not have it in that layout, or it
  // cannot be mapped. A backend that takes it reads no rows. Instead it calls check_mapped() for
  // every row exactly once: rows [first, first + rows), in whole panels where the layout is panels.
  // Several threads may call check_mapped() at the same time.
  virtual std::optional<MappedWeight> try_map(WeightLayout /*layout*/) { return std::nullopt; }
  virtual void check_mapped(std::int64_t /*first*/, std::int64_t /*rows*/) {}
};

// A weight to load, and where its content comes from.
struct WeightLoad {
  WeightSpec spec;
  WeightSource* source = nullptr;
};

}  // namespace ptrt
