// Choice of the next token and log-probabilities on the device; the rules are those of
// kernels/cpu/sampling.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "kernels/backend.h"
#include "kernels/cuda/device_memory.h"

namespace ptrt::cuda {

class Sampler {
 public:
  Sampler(const WorkLimits& limits, const Stream& stream);

  // Backend::sample() and Backend::log_probs() of float32 logits; wait for the results.
  void sample(const Tensor& logits, std::span<const SampleParams> params, std::span<Sampled> out);
  void log_probs(const Tensor& logits, std::span<const std::int32_t> targets, std::span<float> out);

 private:
  template <typename T>
  void upload(std::span<const T> values, T* pinned, T* device);

  const Stream& stream_;
  std::int64_t max_rows_;
  // Each [logit_rows], on the device and in pinned memory.
  DevicePointer<SampleParams> params_;
  DevicePointer<std::int32_t> targets_;
  DevicePointer<Sampled> sampled_;
  std::shared_ptr<std::byte[]> pinned_in_, pinned_out_;
};

}  // namespace ptrt::cuda
