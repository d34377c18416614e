#include "kernels/cuda/matmul/products.h"

#include <algorithm>

#include "kernels/cuda/base/collective_memory.h"
#include "kernels/cuda/host/completion_fence.h"
#include "kernels/cuda/host/weight_layout.h"
#include "kernels/cuda/matmul/gemm_lt.h"
#include "kernels/cuda/matmul/skinny_gemm.h"
#include "kernels/cuda/matmul/skinny_gemm_8bit.h"
#include "kernels/cuda/ops/elementwise.h"

namespace ptrt::cuda {
namespace {

// Up to this many rows, products with 8-bit weights run by passes of kSkinnyRows, each of which reads a byte a
// weight. Widening moves five: a read, and two written and read again, though mostly within the L2 cache.
constexpr std::int64_t kPassedRows = 3 * kSkinnyRows;

DType weight_type(const LinearJob& job) {
  return (*job.weights)[0].dtype;
}
bool of_one_type(const LinearJob& job) {
  return std::ranges::all_of(*job.weights, [&](const Weight& w) { return w.dtype == weight_type(job); });
}
// Whether cuBLASLt takes its sizes; the other kernels take any.
bool suits_cublaslt(const LinearJob& job) {
  return job.x.width % 8 == 0 && job.y.width % 8 == 0;
}

void linear_by_track(Products& products, const LinearJob& job, cudaStream_t stream) {
  for (std::int64_t t = 0; t < job.y.tracks; ++t) {
    const auto of_track = [t](const TrackWeights& all) {
      return TrackWeights{all[static_cast<std::size_t>(t)]};
    };
    const TrackWeights weights = of_track(*job.weights);
    const TrackWeights bias = job.bias == nullptr ? TrackWeights{} : of_track(*job.bias);
    const LinearJob one{&weights, job.x.tracks == 1 ? job.x : job.x.track(t), job.y.track(t),
                        job.bias == nullptr ? nullptr : &bias};
    products.linear({&one, 1}, stream);
  }
}

}  // namespace

void Products::linear(std::span<const LinearJob> jobs, cudaStream_t stream) {
  while (!jobs.empty()) {
    std::size_t done = 1;
    if (!of_one_type(jobs[0]))
      linear_by_track(*this, jobs[0], stream);
    else if (is_8bit(weight_type(jobs[0])))
      done = first_8bit(jobs, stream);
    else
      done = first_16bit(jobs, stream);
    jobs = jobs.subspan(done);
  }
}

std::size_t Products::first_16bit(std::span<const LinearJob> jobs, cudaStream_t stream) {
  const auto suits = [&](const LinearJob& job) {
    return of_one_type(job) && weight_type(job) == weight_type(jobs[0]);
  };
  const auto wide = [](const LinearJob& job) { return job.x.rows > kSkinnyRows && suits_cublaslt(job); };
  if (wide(jobs[0])) {
    const bool pair = jobs.size() > 1 && suits(jobs[1]) && gemm_lt_pair(jobs[0], jobs[1], cublaslt_, stream);
    if (!pair) gemm_lt(jobs[0], cublaslt_, stream);
    const std::size_t done = pair ? 2 : 1;
    for (const LinearJob& job : jobs.first(done)) finish_gemm_lt(job, stream);
    return done;
  }
  std::size_t count = 1;
  while (count < std::min(jobs.size(), kSkinnyJobs) && !wide(jobs[count]) && suits(jobs[count])) ++count;
  skinny_gemm(jobs.first(count), stream);
  return count;
}

std::size_t Products::first_8bit(std::span<const LinearJob> jobs, cudaStream_t stream) {
  const auto wide = [](const LinearJob& job) { return job.x.rows > kPassedRows && suits_cublaslt(job); };
  if (wide(jobs[0])) {
    widened_.run(jobs[0], cublaslt_, stream);
    finish_gemm_lt(jobs[0], stream);
    return 1;
  }
  std::size_t count = 1;
  while (count < std::min(jobs.size(), kSkinnyJobs) && !wide(jobs[count]) && of_one_type(jobs[count]) &&
         weight_type(jobs[count]) == weight_type(jobs[0]))
    ++count;
  skinny_gemm_8bit(jobs.first(count), stream);
  return count;
}

// cuBLASLt's kernels add no bias, and may trigger early.
void Products::finish_gemm_lt(const LinearJob& job, cudaStream_t stream) {
  if (job.bias != nullptr)
    add_bias(*job.bias, job.y, stream);
  else if (in_collective_memory(job.y.data))
    completion_fence(stream);
}

bool Products::gated_linear(FfnActivation activation, const LinearJob& gate, const LinearJob& up,
                            cudaStream_t stream) const {
  const bool alike = of_one_type(gate) && of_one_type(up) && weight_type(gate) == weight_type(up);
  const bool narrow = is_8bit(weight_type(gate));
  if (!alike || gate.x.width % 8 != 0 || gate.x.rows > (narrow ? kPassedRows : kSkinnyRows)) return false;
  (narrow ? skinny_gated_gemm_8bit : skinny_gated_gemm)(activation, gate, up, stream);
  return true;
}

}  // namespace ptrt::cuda
