// Matrix products y[r, o] = Σ_i x[r, i] · w[o, i] over packed weights.
//
// The compute type says what the inputs of the products are: float32 takes x as it is and widens
// every weight type; bfloat16 rounds x; int8 quantises x in groups. Sums are float32.
//
// Order of one sum (r, o): one chain over i in ascending order, fused where the instruction set has
// it (AVX-512-BF16: two products a step; BFMMLA: two pairs; int8: a group's exact integer sum a step). It does not
// depend on the number of rows, on the threads or on the tile that holds the pair.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/host/memory.h"
#include "kernels/cpu/host/thread_pool.h"
#include "kernels/cpu/matmul/activations.h"
#include "kernels/cpu/matmul/matmul_tiles.h"
#include "kernels/cpu/matmul/stream_shares.h"
#include "kernels/cpu/matmul/weight_order.h"
#include "kernels/cpu/weights/packed.h"
#include "kernels/tensor.h"

namespace ptrt {

// Whether the instruction set in use has instructions for products of that type (matmul_native.h, matmul_int16.h).
bool multiplies_natively(Compute compute);

// The type in which products with weights of type `weights` take their inputs. That is `compute`,
// except for floating weights among int8 products (a tied head): for these it is bfloat16 where
// they are bfloat16 and the processor multiplies it natively, else float32.
Compute product_type(Compute compute, DType weights);

// One product. Row r reads x + x_rows[r] · in and writes y + y_rows[r] · out; without the indices,
// row r itself.
struct Product {
  PackedLayout layout;
  const std::byte* matrix = nullptr;
  bool exact = false;  // takes float32 whatever the compute type (routers)
  std::int64_t rows = 0;
  const float* x = nullptr;
  std::int64_t x_height = 0;  // rows that x has: all that x_rows may name
  float* y = nullptr;
  const std::int32_t* x_rows = nullptr;
  const std::int32_t* y_rows = nullptr;
};

// Runs lists of products, all of a list in one parallel region. Keeps the scratch.
class Matmul {
 public:
  Matmul(ThreadPool& pool, Compute compute)
      : pool_(pool), compute_(compute), shares_(pool.threads()), order_(pool.threads()) {}

  // The products must not overlap in what they write. Matrices stay until the pool has ended or is
  // stopped. `products` are processed in no particular order.
  void run(std::span<const Product> products);

 private:
  // A matrix of activations in the form that products take; several products may share it.
  struct Input {
    const float* x;
    std::int64_t in, height;
    RowFormat format;
    std::int64_t offset;     // of its records in the scratch
    std::int64_t first_row;  // among the rows of all inputs that are converted
  };
  // How a product is cut into tasks, blocks of rows by runs of panels; `first_task` is its first in
  // the list's.
  struct Plan {
    std::size_t input = 0;
    std::int64_t first_task = 0, row_blocks = 0, rows_per_block = 0, panels_per_task = 0;
  };

  RowFormat format_of(const Product& p) const;
  std::size_t input_of(const Product& p);
  void convert_inputs();
  void plan_tasks(std::span<const Product> products);
  void run_stream(std::span<const Product> products);
  void run_task(const Product& p, const Plan& plan, std::int64_t task) const;
  void run_panels(std::span<const Product> products, std::int64_t begin, std::int64_t end) const;
  MatmulBlock block_of(const Product& p, const Plan& plan) const;

  ThreadPool& pool_;
  Compute compute_;
  StreamShares shares_;
  WeightOrder order_;
  std::vector<Input> inputs_;
  std::vector<Plan> plans_;
  std::int64_t scratch_bytes_ = 0, converted_rows_ = 0, converted_elements_ = 0;
  std::int64_t tasks_ = 0, panels_ = 0;  // of a list
  bool small_ = false;                   // not worth waking other threads
  ScratchFloats scratch_;
  std::byte* records_ = nullptr;
};

}  // namespace ptrt
