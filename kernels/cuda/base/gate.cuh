// The functions of the gate in an FFN: gate(x · w_gate) · (x · w_up). Kernels are templates over
// one of them.
#pragma once

#include "kernels/cuda/base/launch.h"
#include "kernels/jobs.h"

namespace ptrt {

struct Silu {
  static __device__ __forceinline__ float of(float x) { return x / (1.0f + expf(-x)); }
};

struct GeluTanh {
  // x/2 · (1 + tanh(u)) = x / (1 + exp(-2u)), where u = sqrt(2/π) · (x + 0.044715 x³)
  static __device__ __forceinline__ float of(float x) {
    constexpr float kTwoRoots = 1.5957691216057308f;  // 2 · sqrt(2/π)
    return x / (1.0f + expf(-kTwoRoots * (x + 0.044715f * x * x * x)));
  }
};

// Calls work.operator()<Gate>() with the function that `activation` names.
template <class Work>
void dispatch_gate(FfnActivation activation, const Work& work) {
  if (activation == FfnActivation::gelu_tanh)
    work.template operator()<GeluTanh>();
  else
    work.template operator()<Silu>();
}

}  // namespace ptrt
