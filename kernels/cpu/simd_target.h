// The instruction set that the dispatched kernels of this process run on.
#pragma once

#include <string>
#include <vector>

namespace ptrt {

// The one in use, e.g. "AVX3". The bits of a result hang on it.
std::string simd_target();
// Whether the one in use is AVX-512.
bool simd_target_is_avx512();
// All that this machine can run, best first.
std::vector<std::string> simd_targets();
// Uses the named one from now on, for every backend of the process; throws when this machine cannot run it.
// An empty name goes back to the best one. Not while an op runs.
void set_simd_target(const std::string& name);

}  // namespace ptrt
