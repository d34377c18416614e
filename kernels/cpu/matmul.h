// Matrix products with float32 activations: y[r, o] = Σ_i x[r, i] · w[o, i].
//
// Weights are float32, float16 or bfloat16, row-major [out, in], and widened in registers or, for many rows,
// panel by panel into a scratch that fits the first-level cache. Sums are float32.
//
// Order of one sum (r, o): blocks of kSumBlock elements of i in ascending order; inside a block as simd-inl.h
// says (one fused chain a lane, then the fixed fold); block sums are added in ascending order. It does not
// hang on the number of rows, on the threads or on which tile the pair falls into.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/memory.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/tensor.h"

namespace ptrt {

inline constexpr std::int64_t kSumBlock = 1024;

// One product. Row r reads x + x_rows[r] · in and writes y + y_rows[r] · out; without the indices, row r
// itself.
struct Product {
  const void* w = nullptr;  // [out, in]
  DType dtype = DType::float32;
  std::int64_t rows = 0, out = 0, in = 0;
  const float* x = nullptr;
  float* y = nullptr;
  const std::int32_t* x_rows = nullptr;
  const std::int32_t* y_rows = nullptr;

  const float* x_row(std::int64_t r) const { return x + (x_rows != nullptr ? x_rows[r] : r) * in; }
  float* y_row(std::int64_t r) const { return y + (y_rows != nullptr ? y_rows[r] : r) * out; }
};

// Runs lists of products, all of a list in one parallel region. Keeps the workers' scratch.
class Matmul {
 public:
  explicit Matmul(ThreadPool& pool);

  // The products must not overlap in what they write. `products` are processed in no particular order.
  void run(std::span<const Product> products);

 private:
  // How a product is cut into tasks, blocks of rows by blocks of outs; `first_task` is its first in the
  // list's.
  struct Plan {
    std::int64_t first_task = 0, row_blocks = 0, rows_per_block = 0, outs_per_block = 0;

    static Plan of(const Product& p, std::int64_t first_task);
    std::int64_t tasks(const Product& p) const;
  };

  ThreadPool& pool_;
  std::vector<Plan> plans_;
  ScratchFloats panels_;  // one widened weight panel a worker
};

}  // namespace ptrt
