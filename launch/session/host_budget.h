// The default size of a CPU rank's KV cache: what its host, weights and activations leave.
#pragma once

#include "kernels/base/host_memory.h"
#include "launch/options/run_options.h"
#include "launch/session/model_source.h"
#include "runtime/serving/memory_plan.h"

namespace ptrt {

struct RunPlan;

// Of a plan whose placement and types are chosen. Reads the model's metadata only where the share is small
// beside the weights. Throws bad_input (plan_host_memory).
HostPlan plan_kv_on_host(const MemoryLimit& limit, const ModelRunOptions& options, const ModelSource& model,
                         const RunPlan& plan);

}  // namespace ptrt
