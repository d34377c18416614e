// Speed of the CPU backend's matrix products beside what the machine can do, both measured in this run.
//
//   bench_ops [THREADS] [--target NAME]   the table, on an instruction set that this machine has (default: the best)
//   bench_ops [THREADS] --ceilings        what the machine can do alone, as a line of JSON
//
// Few rows (decode): GB/s of packed weights read, its share of the read bandwidth, and the share of the peak that its
// multiply-adds are. 512 rows (prefill):
// GFLOP/s (2 a multiply-add; int8: the same count of integer operations) and its share of the peak of the
// instruction that the compute type uses. Weights are several copies, larger together than the caches, taken
// in turn. Each figure is the median of kRepeats; ceilings are the best of as many (of the read bandwidth
// --ceilings tells the median too), measured before each line.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <span>
#include <string_view>
#include <thread>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/simd/simd_target.h"
#include "kernels/make_cpu_backend.h"
#include "stream_read.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ptrt {
namespace {

constexpr int kRepeats = 7;
constexpr std::size_t kStreamBytes = std::size_t{256} << 20;
constexpr std::int64_t kDecodeRows[] = {1, 4, 8, 32}, kPrefillRows = 512;

double seconds(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double median_seconds(const std::function<void()>& work) {
  work();
  std::vector<double> times;
  for (int i = 0; i < kRepeats; ++i) times.push_back(seconds(work));
  std::nth_element(times.begin(), times.begin() + kRepeats / 2, times.end());
  return times[kRepeats / 2];
}

// Runs body(thread) on every thread at once; seconds until the last is done.
double on_threads(int threads, const std::function<void(int)>& body) {
  return seconds([&] {
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(body, t);
    body(0);
    for (std::thread& other : others) other.join();
  });
}

// Of kRepeats runs.
struct Rate {
  double best = 0, median = 0;
};

Rate rate_of(int threads, double work, const std::function<void(int)>& body) {
  std::vector<double> rates;
  for (int i = 0; i < kRepeats; ++i) rates.push_back(work / on_threads(threads, body));
  std::ranges::sort(rates);
  return {rates.back(), rates[kRepeats / 2]};
}

struct Ceilings {
  double read = 0, read_median = 0, float32 = 0, bfloat16 = 0, int8 = 0;  // bytes/s, operations/s

  double of(Compute compute) const {
    if (compute == Compute::float32 || !cpu_computes(compute)) return float32;
    return compute == Compute::bfloat16 ? bfloat16 : int8;
  }
};

#if defined(__x86_64__)
constexpr std::int64_t kPeakSteps = 4'000'000;

#define PTRT_BENCH_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni"), noinline))
#define PTRT_BENCH_AVX2 __attribute__((target("avx2,fma"), noinline))
// As many sums in flight as registers allow: `work`, a line of assembly, adds to each.
#define PTRT_BENCH_CHAINS(type, chains, value, constraint, work)                               \
  type sums[chains] = {}, a = value;                                                           \
  for (std::int64_t i = 0; i < kPeakSteps; ++i) {                                              \
    _Pragma("GCC unroll 16") for (type & sum : sums) asm volatile(work : "+" constraint(sum) : \
                                                                  constraint(a));              \
  }

constexpr int kChains = 16, kChainsOfAvx2 = 12;

PTRT_BENCH_AVX512 void multiply_float32(){
    PTRT_BENCH_CHAINS(__m512, kChains, _mm512_set1_ps(0.5f), "v", "vfmadd231ps %1, %1, %0")} PTRT_BENCH_AVX512
    void multiply_bfloat16(){PTRT_BENCH_CHAINS(__m512, kChains, _mm512_set1_ps(0.5f), "v",
                                               "vdpbf16ps %1, %1, %0")} PTRT_BENCH_AVX512
    void multiply_int8(){
        PTRT_BENCH_CHAINS(__m512i, kChains, _mm512_set1_epi8(1), "v", "vpdpbusd %1, %1, %0")} PTRT_BENCH_AVX2
    void multiply_float32_avx2(){
        PTRT_BENCH_CHAINS(__m256, kChainsOfAvx2, _mm256_set1_ps(0.5f), "x", "vfmadd231ps %1, %1, %0")}
// int8 as pairs of 16-bit integers.
PTRT_BENCH_AVX2 void multiply_int16_avx2() {
  PTRT_BENCH_CHAINS(__m256i, kChainsOfAvx2, _mm256_set1_epi16(1), "x",
                    "vpmaddwd %1, %1, %%ymm15\n\tvpaddd %%ymm15, %0, %0")
}

// Operations a second, two a multiply-add, of instructions that do `products` of them.
double peak(int threads, int chains, int products, void (*body)()) {
  const double instructions = static_cast<double>(kPeakSteps) * chains * threads;
  return rate_of(threads, instructions * 2 * products, [body](int) { body(); }).best;
}

// Of the instructions that products use on this processor; 0 where it has none of a kind.
void measure_peaks(int threads, Ceilings& c) {
  if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) {
    c.float32 = peak(threads, kChains, 16, multiply_float32);
    c.bfloat16 = peak(threads, kChains, 32, multiply_bfloat16);
    c.int8 = peak(threads, kChains, 64, multiply_int8);
  } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    c.float32 = peak(threads, kChainsOfAvx2, 8, multiply_float32_avx2);
    c.int8 = peak(threads, kChainsOfAvx2, 16, multiply_int16_avx2);
  }
}

Ceilings measure_ceilings(Backend& backend, int threads) {
  static const auto memory = backend.allocate(kStreamBytes, "the stream");
  static const bool touched = (std::fill_n(memory.get(), kStreamBytes, std::byte{1}), true);
  const std::size_t share = kStreamBytes / static_cast<std::size_t>(threads) / kStreamPiece * kStreamPiece;
  Ceilings c;
  if (touched) {
    const Rate read = rate_of(threads, static_cast<double>(share) * threads, [&](int t) {
      read_stream(memory.get() + static_cast<std::size_t>(t) * share, share);
    });
    c.read = read.best, c.read_median = read.median;
  }
  measure_peaks(threads, c);
  return c;
}
#else
Ceilings measure_ceilings(Backend&, int) {
  return {};
}
#endif

// Elements that repeat, small and of both signs, in bfloat16.
class Pattern final : public WeightSource {
 public:
  void read(std::int64_t, std::span<std::byte> rows) override {
    for (std::size_t i = 0; i + 1 < rows.size(); i += 2) {
      rows[i] = static_cast<std::byte>(i * 7 % 251);
      rows[i + 1] = static_cast<std::byte>(i % 3 == 0 ? 0x3C : 0xBC);
    }
  }
  void read_scales(std::int64_t, std::span<std::byte>) override {}
};

struct Shape {
  std::int64_t in, out;
};

void bench(Compute compute, const Shape& shape, int threads, const Ceilings& ceilings) {
  const auto backend =
      make_cpu_backend({.threads = threads, .compute = compute, .quantize_int8 = compute == Compute::int8});
  std::vector<TrackWeights> copies;
  while (backend->weight_bytes() < kStreamBytes) {
    Pattern pattern;
    copies.push_back(
        {backend->load_weight({"w", WeightRole::matrix, DType::bfloat16, 1, shape.out, shape.in}, pattern)});
  }
  std::vector<float> x(static_cast<std::size_t>(kPrefillRows * shape.in), 0.5f);
  std::vector<float> y(static_cast<std::size_t>(kPrefillRows * shape.out));
  const auto run = [&](const TrackWeights& w, std::int64_t rows) {
    const LinearJob job{&w, {x.data(), 1, rows, shape.in, 0}, {y.data(), 1, rows, shape.out, 0}};
    backend->linear({&job, 1});
  };
  const auto share = [](double part, double all) {
    return all > 0 ? fmt::format("{:.2f}", part / all) : "-";
  };
  fmt::print("{:9} {:>5} x {:<5}", to_string(compute), shape.in, shape.out);
  for (const std::int64_t rows : kDecodeRows) {
    const double time = median_seconds([&] {
      for (const TrackWeights& w : copies) run(w, rows);
    });
    const double bytes = static_cast<double>(backend->weight_bytes()) / time;
    const double operations =
        2.0 * static_cast<double>(copies.size()) * static_cast<double>(rows * shape.in * shape.out) / time;
    fmt::print(" {:6.1f} {:>5} {:>5}", bytes * 1e-9, share(bytes, ceilings.read),
               share(operations, ceilings.of(compute)));
  }
  const double time = median_seconds([&] { run(copies[0], kPrefillRows); });
  const double operations = 2.0 * kPrefillRows * static_cast<double>(shape.in * shape.out) / time;
  fmt::print(" {:7.1f} {:>5}\n", operations * 1e-9, share(operations, ceilings.of(compute)));
}

void print_ceilings(const Ceilings& c) {
  fmt::print(
      "{{\"read_gb_per_s\": {:.2f}, \"read_median_gb_per_s\": {:.2f}, "
      "\"float32_gop_per_s\": {:.1f}, \"bfloat16_gop_per_s\": {:.1f}, \"int8_gop_per_s\": {:.1f}}}\n",
      c.read * 1e-9, c.read_median * 1e-9, c.float32 * 1e-9, c.bfloat16 * 1e-9, c.int8 * 1e-9);
}

void print_table(Backend& backend, int threads) {
  fmt::print("{} threads, {}\n{:9} {:>13}", threads, backend.instruction_set(), "products", "in x out");
  for (const std::int64_t rows : kDecodeRows) fmt::print(" {:>18}", fmt::format("{} row GB/s", rows));
  fmt::print(" {:>13}\n", fmt::format("{} GFLOP/s", kPrefillRows));
  for (const Compute compute : {Compute::float32, Compute::bfloat16, Compute::int8})
    for (const Shape& shape : {Shape{256, 1216}, {768, 2048}, {2048, 768}, {768, 32000}})
      bench(compute, shape, threads, measure_ceilings(backend, threads));
}

}  // namespace
}  // namespace ptrt

int main(int argc, char** argv) {
  int threads = 2;
  bool ceilings = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "--ceilings")
      ceilings = true;
    else if (word == "--target" && i + 1 < argc)
      ptrt::set_simd_target(argv[++i]);
    else
      threads = std::max(1, std::atoi(argv[i]));
  }
  const auto backend = ptrt::make_cpu_backend({.threads = threads});
  if (ceilings)
    ptrt::print_ceilings(ptrt::measure_ceilings(*backend, threads));
  else
    ptrt::print_table(*backend, threads);
  return 0;
}
