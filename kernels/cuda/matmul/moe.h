// Mixture-of-experts FFN on the device: route, group the slots by expert, products of each expert over its
// rows, combine. The host learns nothing of the routing, so nothing waits.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/host/device_memory.h"

namespace ptrt::cuda {

struct ExpertChoice {
  std::int32_t expert = 0;
  float weight = 0;  // softmax over the chosen
};

class Moe {
 public:
  explicit Moe(const WorkLimits& limits);
  // Backend::moe_ffn() with activations and experts of one inner type (numbers.cuh), a float32 router; y may
  // be float32.
  void run(const MoeJob& job, cudaStream_t stream) const;

 private:
  std::int64_t max_slots_ = 0, max_experts_ = 0;  // slots: rows · top_k
  // Slot s of a row r is row r · top_k + s of the scratch of the job.
  DevicePointer<ExpertChoice> choices_;        // [tracks, slots]
  DevicePointer<std::int32_t> grouped_slots_;  // [tracks, slots] by expert, ascending within one
  DevicePointer<std::int32_t> expert_begin_;   // [tracks, experts + 1] where an expert's slots begin
};

}  // namespace ptrt::cuda
