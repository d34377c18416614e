// Measures ops of the CUDA backend at the shapes of a rank (bench_cuda.cpp says how).
#pragma once

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cuda_options.h"
#include "cuda_shape.h"
#include "graph_timer.h"
#include "kernels/cuda/cuda_backend.h"

namespace ptrt {

struct Ceilings {
  double copy_gb_per_s = 0, read_gb_per_s = 0, gemm_tflops = 0;
  double gb_per_s() const { return std::max(copy_gb_per_s, read_gb_per_s); }
};

class CudaBench {
 public:
  static constexpr std::int64_t kSequences = kBenchSequences, kContext = 32768;

  // Activations, keys and values have dtype `type`, and matrices unless a product says otherwise. Steps have up to
  // `max_rows` rows. Without `ceilings`, measure_ceilings() must be called first.
  CudaBench(const std::string& device, const BenchShape& shape, std::int64_t max_rows, DType type,
            const Ceilings& ceilings = {});

  void measure_ceilings();

  struct Product {
    std::string name;
    std::int64_t in = 0;
    std::vector<std::int64_t> outs;         // of matrices that share an input
    bool fp32_out = false, shared = false;  // shared: one matrix for all tracks
  };
  // As in the forward pass: in one call. `weights`: float32 stands for the type of activations.
  void linear(const Product& product, std::int64_t rows, DType weights = DType::float32);
  void gated_linear(std::int64_t rows, DType weights = DType::float32);
  // The products of a layer, and with up to kSequences rows that of the head.
  void products(std::int64_t rows, DType weights = DType::float32);
  // `clusters`: of thread blocks, where the backend would launch them.
  void decode_attention(std::int64_t batch, std::int64_t context, bool clusters = true);
  void prefill_attention(std::int64_t rows, std::int64_t past);
  void row_ops(std::int64_t rows);
  void layer(std::int64_t rows, std::int64_t context, DType weights = DType::float32, bool fp32_out = false);
  void sampling(std::int64_t rows, const char* name, const SampleParams& params);

  const BenchShape& shape() const { return shape_; }
  const Ceilings& ceilings() const { return ceilings_; }
  const nlohmann::ordered_json& results() const { return results_; }

 private:
  // One of four buffers of activations, of all tracks; its rows in `dtype`.
  Tensor activations(int which, std::int64_t rows, std::int64_t width) const;
  Tensor fp32_rows(int which, std::int64_t rows, std::int64_t width) const;
  void set_step(const std::vector<std::int32_t>& positions, const std::vector<std::int32_t>& slots,
                std::int64_t slot_pages);
  void report(const std::string& name, std::int64_t rows, double us, double bytes, double operations);
  void fill_arena();
  void fill_activations();
  DType matrix_type(DType asked) const { return asked == DType::float32 ? type_ : asked; }
  // The op's name in the results.
  std::string label(const std::string& name, DType weights = DType::float32) const;

  BenchShape shape_;
  std::int64_t max_rows_, buffer_elements_;  // of one of four
  DType type_;
  CudaBackend backend_;
  GraphTimer timer_;
  std::shared_ptr<std::byte[]> arena_, streams_, activations_, logits_;
  Ceilings ceilings_;
  nlohmann::ordered_json results_ = nlohmann::ordered_json::array();
  std::vector<std::int32_t> page_table_;
};

}  // namespace ptrt
