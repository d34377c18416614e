// Reads memory as fast as the loads of a plain loop can: the yardstick for ops that stream weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ptrt {

// Bytes that read_stream() takes at a time; it reads whole ones.
inline constexpr std::size_t kStreamPiece = 512;

#if defined(__x86_64__)
__attribute__((target("avx512f"), noinline)) inline void read_stream_avx512(const std::byte* from,
                                                                            std::size_t bytes) {
  __m512i sum[8] = {};
  for (const std::byte* end = from + bytes; from < end; from += kStreamPiece) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      sum[i] = _mm512_xor_si512(sum[i], _mm512_load_si512(reinterpret_cast<const __m512i*>(from + 64 * i)));
  }
  for (__m512i& s : sum) asm volatile("" : : "v"(s));
}

__attribute__((target("avx2"), noinline)) inline void read_stream_avx2(const std::byte* from,
                                                                       std::size_t bytes) {
  __m256i sum[8] = {};
  for (const std::byte* end = from + bytes; from < end; from += kStreamPiece / 2) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      sum[i] = _mm256_xor_si256(sum[i], _mm256_load_si256(reinterpret_cast<const __m256i*>(from + 32 * i)));
  }
  for (__m256i& s : sum) asm volatile("" : : "x"(s));
}
#endif

__attribute__((noinline)) inline void read_stream_portable(const std::byte* from, std::size_t bytes) {
  std::uint64_t sum[kStreamPiece / 8] = {};
  for (const std::byte* end = from + bytes; from < end; from += kStreamPiece) {
    std::uint64_t words[kStreamPiece / 8];
    std::memcpy(words, from, sizeof(words));
    for (std::size_t i = 0; i < kStreamPiece / 8; ++i) sum[i] ^= words[i];
  }
  for (std::uint64_t& s : sum) asm volatile("" : : "r"(s));
}

// `from` is 64-byte aligned.
inline void read_stream(const std::byte* from, std::size_t bytes) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return read_stream_avx512(from, bytes);
  if (__builtin_cpu_supports("avx2")) return read_stream_avx2(from, bytes);
#endif
  read_stream_portable(from, bytes);
}

}  // namespace ptrt
