#include "kernels/cuda/base/launch.h"
#include "kernels/cuda/host/completion_fence.h"

namespace ptrt::cuda {
namespace {

__global__ void completion_fence_kernel() {
  grid_dependency_wait();
}

}  // namespace

void completion_fence(cudaStream_t stream) {
  launch({"completion_fence", dim3(1), dim3(1), stream}, completion_fence_kernel);
}

}  // namespace ptrt::cuda
