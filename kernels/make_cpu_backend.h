// The CPU backend's factory; its class is in cpu_backend.h.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/host_cores.h"
#include "kernels/tensor.h"
#include "kernels/weight_memory.h"
#include "kernels/weight_source.h"

namespace ptrt {

struct CpuOptions {
  int threads = 1;  // workers, the calling thread included
  // The cores of each worker; none: anywhere. The first is the calling thread's, which binds
  // itself.
  std::vector<CpuSet> worker_cores = {};
  // More threads than processing units run on this host: workers sleep at once when there is
  // nothing to do.
  bool oversubscribed = false;
  // Type of the products' inputs. bfloat16 rounds activations (and wider weights, at load) to
  // bfloat16; int8 quantises activations in groups of kInt8Group and needs int8 matrices; float32
  // takes every weight type.
  Compute compute = Compute::float32;
  // Matrices of other types (float8 ones once widened; not routers, not tables that are looked up) become
  // int8 at load, or the load is refused: every weight must be finite and at most kLargestInt8Weight (int8.h).
  bool quantize_int8 = false;
  // Where weights lie; null: in memory of this process alone. Where it is adopted when weights are loaded, their
  // sources are not read.
  std::shared_ptr<WeightMemory> weights = nullptr;
};

// Throws bad_input when threads < 1; loading a weight throws it when its type does not fit the
// options.
std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options);

// What such a backend keeps of a weight: its type, and its bytes. float8 is kept as what it widens to. Both throw
// bad_input where the stored type does not fit the options.
DType cpu_weight_type(const WeightSpec& stored, const CpuOptions& options);
std::size_t cpu_weight_bytes(const WeightSpec& spec, const CpuOptions& options);

// Whether the processor multiplies in that type at speed: decides `--compute auto`.
bool cpu_computes(Compute compute);

}  // namespace ptrt
