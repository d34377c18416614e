// Mixture-of-experts FFN: route, group the rows by expert, run each chosen expert once over its
// rows, combine.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/host/thread_pool.h"
#include "kernels/cpu/matmul/matmul.h"
#include "kernels/jobs.h"

namespace ptrt {

struct ExpertChoice {
  std::int32_t expert = 0;
  float weight = 0;
};

// Caps the logits of one row in place (cap · tanh(l / cap), unless cap is 0) and writes the
// `chosen.size()` largest with their softmax weights, largest first, ties in favour of the lower
// index. The softmax is over the chosen experts with `normalize`, else over all. Weights are NaN
// where a logit is not finite.
void route_row(std::span<float> logits, float cap, bool normalize, std::span<ExpertChoice> chosen);

class Moe {
 public:
  Moe(ThreadPool& pool, Matmul& matmul) : pool_(pool), matmul_(matmul) {}

  // y[t, r] = Σ_slot weight[slot] · expert_out[slot], slots in the order of choice. A row's experts
  // read and write row r · top_k + slot of the job's scratch, so every expert's weights are read
  // once a call.
  void run(const MoeJob& job);

 private:
  void route(const MoeJob& job);
  void group_by_expert(const MoeJob& job);
  void combine(const MoeJob& job);

  ThreadPool& pool_;
  Matmul& matmul_;
  // Grow on the first calls only.
  std::vector<Product> products_;
  std::vector<ExpertChoice> choices_;       // [tracks, rows, top_k]
  std::vector<std::int32_t> slot_rows_;     // [tracks, rows · top_k] rows of the scratch, grouped by expert
  std::vector<std::int32_t> source_rows_;   // the rows of x they come from
  std::vector<std::int32_t> expert_begin_;  // [tracks, experts + 1] where an expert's group begins
};

}  // namespace ptrt
