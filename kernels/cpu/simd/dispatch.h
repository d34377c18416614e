// Highway's dynamic dispatch, without its shared library: loading that times the processor's clock for 3 ms, a third
// of what the program needs until main(). To be included after hwy/highway.h.
//
//     PTRT_EXPORT(f);               once a source, of a function in HWY_NAMESPACE
//     PTRT_DISPATCH(f)(arguments)   calls that of the instruction set in use (simd_target.h)
#pragma once

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"

namespace ptrt {

// Highway's bits of the instruction sets that this machine runs, among them the portable one.
std::int64_t detect_simd_targets();

// Place of the instruction set in use in the tables below.
std::size_t chosen_simd_target();

}  // namespace ptrt

#if (HWY_TARGETS & (HWY_TARGETS - 1)) == 0  // one alone is compiled
#define PTRT_EXPORT(f) static_assert(true)
#define PTRT_DISPATCH(f) HWY_STATIC_DISPATCH(f)
#else
// hwy::ChosenTarget gives places from 1 on.
#define PTRT_EXPORT(f)                                                                               \
  static constexpr decltype(&HWY_STATIC_DISPATCH(f)) f##_of[] = {nullptr, HWY_CHOOSE_TARGET_LIST(f), \
                                                                 HWY_CHOOSE_FALLBACK(f)}
#define PTRT_DISPATCH(f) (*f##_of[::ptrt::chosen_simd_target()])
#endif
