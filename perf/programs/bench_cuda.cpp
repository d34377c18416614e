// Speed of the CUDA backend's ops in relation to the GPU's ceilings, both measured in this run.
//
//   bench_cuda [--json FILE]
//
// Ceilings first. Memory-bound ops: GB/s of a large copy (read + written) or a large read,
// whichever is larger. Compute-bound ops: TFLOP/s of cuBLASLt's bfloat16 GEMM of 8192 x 8192 x
// 8192. Then ops with the shapes of perf/configs/dense_8b.json through the Backend interface:
// microseconds, GB/s of the bytes that must move or TFLOP/s of the operations that must be done,
// and their share of the ceiling. Data are random; memory-bound ops cycle through more weights or
// pages than the L2 cache holds. Times are device times, medians over replays of a CUDA graph with
// several launches. All ops in bfloat16; those on tensor cores also in float16.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "cuda_kernels.h"
#include "cuda_layer.h"
#include "graph_timer.h"
#include "kernels/base/error.h"
#include "kernels/cuda/cuda_backend.h"

namespace ptrt {
namespace {

using nlohmann::ordered_json;

constexpr std::size_t kArenaBytes = std::size_t{4} << 30;
constexpr std::int64_t kHidden = 4096, kHeads = 32, kKvHeads = 8, kHeadDim = 128, kFfn = 14336,
                       kVocab = 128256;
constexpr std::int64_t kMaxRows = 4096, kSequences = 128, kContext = 32768;

struct Ceilings {
  double copy_gb_per_s = 0, read_gb_per_s = 0, gemm_tflops = 0;
  double gb_per_s() const { return std::max(copy_gb_per_s, read_gb_per_s); }
};

class Bench {
 public:
  // Activations, weights and pages have dtype `type`. Without `ceilings`, measure_ceilings() must
  // be called first.
  Bench(const std::string& device, DType type, const Ceilings& ceilings = {})
      : type_(type),
        backend_(device, true, type),
        timer_(backend_.stream()),
        arena_(backend_.allocate(kArenaBytes, "weights and pages of the benchmark")),
        streams_(backend_.allocate(2 * kMaxRows * kHidden * sizeof(float), "streams")),
        activations_(backend_.allocate(4 * kMaxRows * kFfn * 2, "activations")),
        logits_(backend_.allocate(kSequences * kVocab * sizeof(float), "logits")),
        ceilings_(ceilings) {
    WorkLimits limits;
    limits.rows = kMaxRows;
    limits.logit_rows = limits.sequences = kSequences;
    limits.context = kContext;
    limits.heads = kHeads;
    limits.head_dim = kHeadDim;
    backend_.reserve(limits);
    fill_arena();
    fill_float32(streams_.get(), 2 * kMaxRows * kHidden, 1, backend_.stream());
    fill_activations();
    fill_float32(logits_.get(), kSequences * kVocab, 10, backend_.stream());
  }

  void measure_ceilings();
  void linear(const char* name, std::int64_t in, const std::vector<std::int64_t>& outs, std::int64_t rows,
              bool fp32_out = false);
  void decode_attention(std::int64_t batch, std::int64_t context);
  void prefill_attention(std::int64_t rows, std::int64_t past);
  void row_ops(std::int64_t rows);
  void layer(std::int64_t rows, std::int64_t context);
  void sampling(std::int64_t rows, const char* name, const SampleParams& params);

  const Ceilings& ceilings() const { return ceilings_; }
  const ordered_json& results() const { return results_; }

 private:
  // One of four buffers of activations, kMaxRows · kFfn elements each.
  Tensor activations(int which, std::int64_t rows, std::int64_t width) const {
    return {activations_.get() + which * kMaxRows * kFfn * 2, 1, rows, width, rows * width, type_};
  }
  Tensor stream(int which, std::int64_t rows) const {
    return {
        streams_.get() + which * kMaxRows * kHidden * 4, 1, rows, kHidden, rows * kHidden, DType::float32};
  }
  void set_step(const std::vector<std::int32_t>& positions, const std::vector<std::int32_t>& slots,
                std::int64_t slot_pages);
  void report_memory_bound(const std::string& name, std::int64_t rows, double us, double bytes);
  void report_compute_bound(const std::string& name, std::int64_t rows, double us, double operations);

  void fill_arena() { fill_16bit(arena_.get(), kArenaBytes / 2, 0.03f, type_, backend_.stream()); }
  void fill_activations() {
    fill_16bit(activations_.get(), 4 * kMaxRows * kFfn, 1, type_, backend_.stream());
  }
  // The op's name in the results.
  std::string label(const std::string& name) const {
    return type_ == DType::bfloat16 ? name : fmt::format("{}, {}", name, to_string(type_));
  }

  DType type_;
  CudaBackend backend_;
  GraphTimer timer_;
  std::shared_ptr<std::byte[]> arena_, streams_, activations_, logits_;
  Ceilings ceilings_;
  ordered_json results_ = ordered_json::array();
  std::vector<std::int32_t> page_table_;
};

void Bench::report_memory_bound(const std::string& name, std::int64_t rows, double us, double bytes) {
  const double rate = bytes / us / 1e3, share = rate / ceilings_.gb_per_s();
  fmt::print("{:<34} {:>6} {:>11.1f} us {:>9.0f} GB/s   {:>5.2f}\n", label(name), rows, us, rate, share);
  results_.push_back({{"op", label(name)},
                      {"rows", rows},
                      {"us", us},
                      {"bound", "memory"},
                      {"gb_per_s", rate},
                      {"share", share}});
}

void Bench::report_compute_bound(const std::string& name, std::int64_t rows, double us, double operations) {
  const double rate = operations / us / 1e6, share = rate / ceilings_.gemm_tflops;
  fmt::print("{:<34} {:>6} {:>11.1f} us {:>9.1f} TFLOP/s {:>4.2f}\n", label(name), rows, us, rate, share);
  results_.push_back({{"op", label(name)},
                      {"rows", rows},
                      {"us", us},
                      {"bound", "arithmetic"},
                      {"tflops", rate},
                      {"share", share}});
}

void Bench::measure_ceilings() {
  constexpr std::size_t kHalf = kArenaBytes / 2;
  std::byte* arena = arena_.get();
  auto* sink = reinterpret_cast<std::uint32_t*>(logits_.get());
  const double copy =
      timer_.median_us(2, [&](int) { copy_bytes(arena, arena + kHalf, kHalf, backend_.stream()); });
  const double read =
      timer_.median_us(2, [&](int) { read_bytes(arena, kArenaBytes, sink, backend_.stream()); });
  constexpr std::int64_t kSide = 8192;
  const Tensor x{arena, 1, kSide, kSide, kSide * kSide, type_};
  const Tensor y{arena + kHalf, 1, kSide, kSide, kSide * kSide, type_};
  const TrackWeights w{{arena + kHalf / 2, type_, 1, kSide, kSide}};
  const LinearJob job{&w, x, y};
  const double product = timer_.median_us(4, [&](int) { backend_.linear({&job, 1}); });
  ceilings_ = {2.0 * kHalf / copy / 1e3, static_cast<double>(kArenaBytes) / read / 1e3,
               2.0 * kSide * kSide * kSide / product / 1e6};
  fill_arena();
  fmt::print("copy {:.0f} GB/s, read {:.0f} GB/s, bfloat16 product {:.0f} TFLOP/s\n", ceilings_.copy_gb_per_s,
             ceilings_.read_gb_per_s, ceilings_.gemm_tflops);
}

// GEMMs that share an input in one call, as in the forward pass.
void Bench::linear(const char* name, std::int64_t in, const std::vector<std::int64_t>& outs,
                   std::int64_t rows, bool fp32_out) {
  const DType y_type = fp32_out ? DType::float32 : type_;
  const std::int64_t out = std::accumulate(outs.begin(), outs.end(), std::int64_t{0}), elements = out * in;
  const auto sets = static_cast<int>(kArenaBytes / (static_cast<std::size_t>(elements) * 2));
  const int launches = std::min(sets, rows <= 16 ? 12 : 4);
  std::vector<std::vector<TrackWeights>> weights(static_cast<std::size_t>(sets));
  for (int s = 0; s < sets; s++) {
    const std::byte* at = arena_.get() + s * elements * 2;
    for (const std::int64_t o : outs) {
      weights[static_cast<std::size_t>(s)].push_back({{at, type_, 1, o, in}});
      at += o * in * 2;
    }
  }
  const double us = timer_.median_us(launches, [&](int i) {
    std::vector<LinearJob> jobs;
    for (std::size_t j = 0; j < outs.size(); j++) {
      Tensor y = activations(1 + static_cast<int>(j), rows, outs[j]);
      if (y_type == DType::float32) y = {logits_.get(), 1, rows, outs[j], rows * outs[j], DType::float32};
      jobs.push_back({&weights[static_cast<std::size_t>(i % sets)][j], activations(0, rows, in), y});
    }
    backend_.linear(jobs);
  });
  const double bytes = 2.0 * static_cast<double>(elements + rows * in) +
                       static_cast<double>(rows * out) * static_cast<double>(size_of(y_type));
  if (rows <= 64)
    report_memory_bound(name, rows, us, bytes);
  else
    report_compute_bound(name, rows, us, 2.0 * static_cast<double>(rows * elements));
}

// Slot s has the pages [s · slot_pages, (s + 1) · slot_pages).
void Bench::set_step(const std::vector<std::int32_t>& positions, const std::vector<std::int32_t>& slots,
                     std::int64_t slot_pages) {
  page_table_.resize(static_cast<std::size_t>((slots.back() + 1) * slot_pages));
  std::iota(page_table_.begin(), page_table_.end(), 0);
  backend_.set_step_inputs(std::vector<std::int32_t>(positions.size(), 0),
                           {positions, slots, page_table_, slot_pages});
}

void Bench::decode_attention(std::int64_t batch, std::int64_t context) {
  const auto rows = static_cast<std::size_t>(batch);
  std::vector<std::int32_t> positions(rows, static_cast<std::int32_t>(context) - 1), slots(rows);
  std::iota(slots.begin(), slots.end(), 0);
  const std::int64_t pages = context / kPageTokens;
  set_step(positions, slots, pages);
  KvPool pool{arena_.get(), type_, 1, 1, batch * pages, kKvHeads, kHeadDim};
  const double bytes = static_cast<double>(pool.bytes());
  pool.layers = std::max<std::int64_t>(1, static_cast<std::int64_t>(kArenaBytes / pool.bytes()));
  const AttentionShape shape{kHeads, kKvHeads, kHeadDim};
  const Tensor q = activations(0, batch, kHeads * kHeadDim), out = activations(1, batch, kHeads * kHeadDim);
  const StepRows step{positions, slots, page_table_, pages};
  const double us = timer_.median_us(static_cast<int>(std::min<std::int64_t>(pool.layers, 12)), [&](int i) {
    backend_.attention(shape, q, step, i % pool.layers, pool, out);
  });
  report_memory_bound(fmt::format("decode attention over {}", context), batch, us, bytes);
}

void Bench::prefill_attention(std::int64_t rows, std::int64_t past) {
  const auto count = static_cast<std::size_t>(rows);
  std::vector<std::int32_t> positions(count), slots(count, 0);
  std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(past));
  const std::int64_t pages = (rows + past) / kPageTokens;
  set_step(positions, slots, pages);
  const KvPool pool{arena_.get(), type_, 1, 1, pages, kKvHeads, kHeadDim};
  const AttentionShape shape{kHeads, kKvHeads, kHeadDim};
  const Tensor q = activations(0, rows, kHeads * kHeadDim), out = activations(1, rows, kHeads * kHeadDim);
  const StepRows step{positions, slots, page_table_, pages};
  const double us = timer_.median_us(4, [&](int) { backend_.attention(shape, q, step, 0, pool, out); });
  const double seen =
      static_cast<double>(rows) * (static_cast<double>(past) + static_cast<double>(rows + 1) / 2);
  report_compute_bound(fmt::format("prefill attention, {} before", past), rows, us,
                       4.0 * kHeads * kHeadDim * seen);
}

// The ops between the GEMMs, each over all rows.
void Bench::row_ops(std::int64_t rows) {
  const auto n = static_cast<std::size_t>(rows);
  const double row_count = static_cast<double>(rows);
  const int launches = rows > 256 ? 4 : 32;
  const TrackWeights norm{{streams_.get(), DType::float32, 1, 1, kHidden}};
  const double norm_us = timer_.median_us(launches, [&](int) {
    backend_.add_rms_norm(activations(0, rows, kHidden), stream(1, rows), norm, 1e-5f,
                          activations(1, rows, kHidden));
  });
  report_memory_bound("add and norm", rows, norm_us, row_count * kHidden * (2 + 4 + 4 + 2));
  // It works in place, again and again: up is such that gates neither vanish nor overflow.
  PTRT_CUDA_CHECK(cudaMemsetAsync(activations(3, rows, kFfn).data, 0x40,
                                  static_cast<std::size_t>(rows * kFfn) * 2, backend_.stream()));
  const double swiglu_us = timer_.median_us(launches, [&](int) {
    backend_.glu(FfnActivation::silu, activations(2, rows, kFfn), activations(3, rows, kFfn));
  });
  report_memory_bound("swiglu", rows, swiglu_us, row_count * kFfn * 3 * 2);

  std::vector<std::int32_t> positions(n), slots(n, 0);
  std::iota(positions.begin(), positions.end(), 0);
  const std::int64_t pages = (rows + kPageTokens - 1) / kPageTokens;
  set_step(positions, slots, pages);
  const KvPool pool{arena_.get(), type_, 1, 1, pages, kKvHeads, kHeadDim};
  const Tensor angles{streams_.get(), 1, rows, kHeadDim, rows * kHeadDim, DType::float32};
  const double rope_us = timer_.median_us(launches, [&](int) {
    backend_.rope_append({kHeads, kKvHeads, kHeadDim}, {}, {}, angles,
                         activations(0, rows, kHeads * kHeadDim), activations(1, rows, kKvHeads * kHeadDim),
                         activations(2, rows, kKvHeads * kHeadDim), {positions, slots, page_table_, pages}, 0,
                         pool);
  });
  report_memory_bound("rope and append", rows, rope_us,
                      row_count * kHeadDim * (2 * 2 * (kHeads + 2 * kKvHeads) + 4));
  fill_activations();  // rotated and multiplied many times
  fill_arena();
}

void Bench::layer(std::int64_t rows, std::int64_t context) {
  for (const auto& [parts, name] : {std::pair{LayerParts::gemms, "layer, products alone"},
                                    {LayerParts::with_norms, "layer, products and norms"},
                                    {LayerParts::whole, "layer"}}) {
    const LayerTime time = measure_layer(backend_, timer_, arena_.get(), kArenaBytes, rows, context, parts);
    report_memory_bound(fmt::format("{} over {}", name, context), rows, time.us, time.bytes);
  }
  fill_arena();
}

// By the host's clock: sample() waits for its results.
void Bench::sampling(std::int64_t rows, const char* name, const SampleParams& params) {
  const Tensor logits{logits_.get(), 1, rows, kVocab, rows * kVocab, DType::float32};
  const std::vector<SampleParams> all(static_cast<std::size_t>(rows), params);
  std::vector<Sampled> sampled(all.size());
  std::vector<double> times;
  for (int i = 0; i < 12; i++) {
    const auto start = std::chrono::steady_clock::now();
    backend_.sample(logits, all, sampled);
    times.push_back(
        std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
  }
  std::ranges::sort(times);
  report_memory_bound(name, rows, times[times.size() / 2],
                      static_cast<double>(rows * kVocab) * sizeof(float));
}

void run_all(Bench& bench) {
  fmt::print("{:<34} {:>6} {:>14} {:>14} {:>7}\n", "op", "rows", "time", "rate", "share");
  for (const std::int64_t rows : {1, 2, 4, 8, 16, 32, 64, 128, 512, 4096}) {
    bench.linear("q, k and v", kHidden, {kHeads * kHeadDim, kKvHeads * kHeadDim, kKvHeads * kHeadDim}, rows);
    bench.linear("wo", kHeads * kHeadDim, {kHidden}, rows);
    bench.linear("gate and up", kHidden, {kFfn, kFfn}, rows);
    bench.linear("down", kFfn, {kHidden}, rows);
    if (rows <= kSequences) bench.linear("head", kHidden, {kVocab}, rows, true);
  }
  for (const auto& [batch, context] :
       {std::pair{1, 4096}, {1, 32768}, {8, 4096}, {64, 1024}, {64, 4096}, {128, 1024}})
    bench.decode_attention(batch, context);
  for (const auto& [rows, past] : {std::pair{4096, 0}, {512, 3584}, {512, 0}})
    bench.prefill_attention(rows, past);
  for (const std::int64_t rows : {1, 16, 128, 4096}) bench.row_ops(rows);
  for (const std::int64_t rows : {1, 8, 16}) bench.layer(rows, 192);
  SampleParams greedy, top_p;
  top_p.temperature = 0.8f;
  top_p.top_p = 0.95f;
  for (const std::int64_t rows : {1, 128}) {
    bench.sampling(rows, "greedy choice, waited for", greedy);
    bench.sampling(rows, "top_p 0.95, waited for", top_p);
  }
}

void run_float16(Bench& bench) {
  for (const std::int64_t rows : {1, 16, 128, 4096}) bench.linear("gate and up", kHidden, {kFfn, kFfn}, rows);
  bench.decode_attention(64, 4096);
  bench.prefill_attention(4096, 0);
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

int run(const std::string& json_file) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    fmt::print(stderr, "bench_cuda: no CUDA device\n");
    return 2;
  }
  ordered_json json{{"machine", machine()}};
  fmt::print("{}\n", json["machine"]["gpu"].get<std::string>());
  const auto gpu = json["machine"]["gpu"].get<std::string>();
  Ceilings c;
  {
    Bench bench(gpu, DType::bfloat16);
    bench.measure_ceilings();
    run_all(bench);
    c = bench.ceilings();
    json["ceilings"] = {{"copy_gb_per_s", c.copy_gb_per_s},
                        {"read_gb_per_s", c.read_gb_per_s},
                        {"gemm_tflops", c.gemm_tflops}};
    json["ops"] = bench.results();
    save(json_file, json);  // in case the rest is interrupted
  }
  Bench float16(gpu, DType::float16, c);
  run_float16(float16);
  for (const ordered_json& op : float16.results()) json["ops"].push_back(op);
  save(json_file, json);
  return 0;
}

}  // namespace
}  // namespace ptrt

int main(int argc, char** argv) {
  try {
    if (argc != 1 && !(argc == 3 && std::strcmp(argv[1], "--json") == 0)) {
      fmt::print(stderr, "bench_cuda [--json FILE]\n");
      return 2;
    }
    return ptrt::run(argc == 3 ? argv[2] : "");
  } catch (const ptrt::Error& error) {
    fmt::print(stderr, "bench_cuda: {}\n", error.what());
    return static_cast<int>(error.code());
  }
}
