// Mixture-of-experts FFN on the device: route, group the slots by expert, grouped GEMMs, combine.
// The host never reads the routing, so it need not wait.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/host/device_memory.h"
#include "kernels/jobs.h"
#include "kernels/step_rows.h"

namespace ptrt::cuda {

struct ExpertChoice {
  std::int32_t expert = 0;
  float weight = 0;  // softmax over the chosen experts
};

class Moe {
 public:
  explicit Moe(const WorkLimits& limits);
  // Backend::moe_ffn() with activations of an activation dtype (dtypes.cuh), experts of that or of 8 bits, a float32
  // router; y may be float32.
  void run(const MoeJob& job, cudaStream_t stream) const;

 private:
  std::int64_t max_slots_ = 0, max_experts_ = 0;  // slots: rows · top_k
  // Slot s of row r is row r · top_k + s of the job's scratch tensors.
  DevicePointer<ExpertChoice> choices_;        // [tracks, slots]
  DevicePointer<std::int32_t> grouped_slots_;  // [tracks, slots] by expert, ascending within one
  DevicePointer<std::int32_t> expert_begin_;   // [tracks, experts + 1] offset of an expert's slots
};

}  // namespace ptrt::cuda
