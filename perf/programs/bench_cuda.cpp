// Speed of the CUDA backend's ops in relation to the GPU's ceilings, both measured in this run.
//
//   bench_cuda [--json FILE] [--config FILE [--ranks N] [--rows N,N,…]]
//
// Ceilings first. Memory-bound ops: GB/s of a large copy (read + written) or a large read,
// whichever is larger. Compute-bound ops: TFLOP/s of cuBLASLt's bfloat16 GEMM of 8192 x 8192 x
// 8192. Then ops through the Backend interface: microseconds, GB/s of the bytes that must move or
// TFLOP/s of the operations that must be done, and their share of the ceiling. Data are random;
// memory-bound ops cycle through more weights or pages than the L2 cache holds. Times are device
// times, medians over replays of a CUDA graph with several launches.
//
// Without --config: the shapes of perf/configs/dense_8b.json, decoding, prefill and sampling, in
// bfloat16; those on tensor cores also in float16, products also with 8-bit matrices. With it: what
// one of N ranks (default: one a track) runs in a layer, for steps of each of these numbers of rows
// (default 1, 8, 16, 64, 128): products with 16-bit and 8-bit matrices, those of many rows also with
// float32 output, all other ops, and the whole layer; for few rows decode attention over longer
// contexts, with clusters of thread blocks and without.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cuda_bench.h"
#include "cuda_options.h"
#include "kernels/base/error.h"

namespace ptrt {
namespace {

using nlohmann::ordered_json;

constexpr DType k8BitTypes[] = {DType::int8, DType::float8_e4m3};
constexpr std::int64_t kPrefillRows = 4096;
constexpr std::int64_t kLayerContext = 192;  // tokens of a sequence, the middle of 128 in and 128 out

void print_head() {
  fmt::print("{:<40} {:>6} {:>14} {:>18} {:>5}\n", "op", "rows", "time", "rate", "share");
}

void run_all(CudaBench& bench) {
  print_head();
  for (const std::int64_t rows : {1, 2, 4, 8, 16, 32, 64, 128, 512, 4096}) bench.products(rows);
  for (const std::int64_t rows : {1, 8, 16, 32, 64, 128, 4096})
    for (const DType weights : k8BitTypes) bench.products(rows, weights);
  for (const auto& [batch, context] :
       {std::pair{1, 4096}, {1, 32768}, {8, 4096}, {64, 1024}, {64, 4096}, {128, 1024}})
    bench.decode_attention(batch, context);
  for (const auto& [rows, past] : {std::pair{4096, 0}, {512, 3584}, {512, 0}})
    bench.prefill_attention(rows, past);
  for (const std::int64_t rows : {1, 16, 128, 4096}) bench.row_ops(rows);
  for (const std::int64_t rows : {1, 8, 16}) bench.layer(rows, kLayerContext);
  for (const DType weights : k8BitTypes) bench.layer(1, kLayerContext, weights);
  SampleParams greedy, top_p;
  top_p.temperature = 0.8f;
  top_p.top_p = 0.95f;
  for (const std::int64_t rows : {1, 128}) {
    bench.sampling(rows, "greedy choice, waited for", greedy);
    bench.sampling(rows, "top_p 0.95, waited for", top_p);
  }
}

void run_float16(CudaBench& bench) {
  const BenchShape& shape = bench.shape();
  for (const std::int64_t rows : {1, 16, 128, 4096})
    bench.linear({"gate and up", shape.hidden, {shape.ffn, shape.ffn}}, rows);
  bench.decode_attention(64, 4096);
  bench.prefill_attention(4096, 0);
}

// What perf/cuda_report.py makes an account of a layer from.
void run_shape(CudaBench& bench, const std::vector<std::int64_t>& all_rows) {
  const BenchShape& shape = bench.shape();
  print_head();
  for (const std::int64_t rows : all_rows) {
    bench.products(rows);
    bench.gated_linear(rows);
    bench.decode_attention(rows, kLayerContext);
    bench.row_ops(rows);
    bench.layer(rows, kLayerContext);
    if (rows <= 16)
      for (const std::int64_t context : {1024, 4096})
        for (const bool clusters : {false, true}) bench.decode_attention(rows, context, clusters);
    for (const DType weights : k8BitTypes) {
      bench.products(rows, weights);
      bench.gated_linear(rows, weights);
      bench.layer(rows, kLayerContext, weights);
    }
    if (rows <= 16) continue;  // one kernel either way
    bench.linear({"wo, float32 output", shape.q_width(), {shape.hidden}, true}, rows);
    bench.linear({"down, float32 output", shape.ffn, {shape.hidden}, true}, rows);
    bench.layer(rows, kLayerContext, DType::float32, true);
  }
}

ordered_json describe(const BenchShape& s) {
  return {{"name", s.name},          {"tracks", s.tracks}, {"layers", s.layers},
          {"hidden_size", s.hidden}, {"heads", s.heads},   {"kv_heads", s.kv_heads},
          {"head_dim", s.head_dim},  {"ffn_size", s.ffn},  {"vocab_size", s.vocab}};
}

ordered_json machine() {
  cudaDeviceProp properties;
  int driver = 0, runtime = 0;
  PTRT_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  PTRT_CUDA_CHECK(cudaDriverGetVersion(&driver));
  PTRT_CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  return {{"gpu", properties.name},
          {"compute_capability", fmt::format("{}.{}", properties.major, properties.minor)},
          {"multiprocessors", properties.multiProcessorCount},
          {"l2_bytes", properties.l2CacheSize},
          {"memory_bytes", properties.totalGlobalMem},
          {"cuda_driver_api", driver},
          {"cuda_runtime", runtime}};
}

void save(const std::string& file, const ordered_json& json) {
  if (file.empty()) return;
  std::ofstream out(file);
  out << json.dump(1) << "\n";
  out.close();
  if (!out) throw_bad_input("cannot write {}", file);
}

template <class Measure>
Ceilings measure(CudaBench& bench, const BenchOptions& options, ordered_json& json, const Measure& rest) {
  bench.measure_ceilings();
  const Ceilings& c = bench.ceilings();
  json["shape"] = describe(bench.shape());
  json["ceilings"] = {
      {"copy_gb_per_s", c.copy_gb_per_s}, {"read_gb_per_s", c.read_gb_per_s}, {"gemm_tflops", c.gemm_tflops}};
  rest();
  json["ops"] = bench.results();
  save(options.json_file, json);
  return c;
}

int run(const BenchOptions& options) {
  const BenchShape shape = shape_of(options);
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    fmt::print(stderr, "bench_cuda: no CUDA device\n");
    return 2;
  }
  ordered_json json{{"machine", machine()}};
  const auto gpu = json["machine"]["gpu"].get<std::string>();
  fmt::print("{}, {}, {} of its tracks\n", gpu, shape.name, shape.tracks);
  if (!options.config_file.empty()) {
    CudaBench bench(gpu, shape, std::ranges::max(options.rows), DType::bfloat16);
    measure(bench, options, json, [&] { run_shape(bench, options.rows); });
    return 0;
  }
  Ceilings ceilings;
  {
    CudaBench bench(gpu, shape, kPrefillRows, DType::bfloat16);
    ceilings = measure(bench, options, json, [&] { run_all(bench); });
  }
  CudaBench float16(gpu, shape, kPrefillRows, DType::float16, ceilings);
  run_float16(float16);
  for (const ordered_json& op : float16.results()) json["ops"].push_back(op);
  save(options.json_file, json);
  return 0;
}

}  // namespace
}  // namespace ptrt

int main(int argc, char** argv) {
  try {
    return ptrt::run(ptrt::parse_bench_options({argv + 1, argv + argc}));
  } catch (const ptrt::Error& error) {
    fmt::print(stderr, "bench_cuda: {}\n", error.what());
    return static_cast<int>(error.code());
  }
}
