// The instruction set that the dispatched kernels of this process run on. Its name is that of the
// vectors, e.g. "AVX3", with "+BF16" where products of bfloat16 pairs are available: the bits of a
// result depend on both.
#pragma once

#include <string>
#include <vector>

namespace ptrt {

// The vectors in use, e.g. "AVX3".
std::string simd_target();
// Whether the products of native_products.h are of these vectors: AVX-512 and NEON.
bool simd_target_has_products();
// Whether the products of bfloat16 pairs (AVX-512-BF16; BFMMLA on Arm) are in use.
bool simd_target_has_bfloat16();
// All that this machine can run, best first, e.g. "AVX3+BF16", "AVX3", "AVX2", …
std::vector<std::string> simd_targets();
// Uses the named one from now on, for every backend of the process; throws when this machine cannot
// run it. An empty name goes back to the best one. Not while an op runs.
void set_simd_target(const std::string& name);

}  // namespace ptrt
