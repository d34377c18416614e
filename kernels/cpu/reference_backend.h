// The op set in plain scalar code, one element at a time, sums in double and in ascending order:
// what the fast kernels are tested against, and the place to read what an op does.
#pragma once

#include <vector>

#include "kernels/backend.h"
#include "kernels/make_cpu_backend.h"

namespace ptrt {

class ReferenceBackend : public Backend {
 public:
  ReferenceBackend() = default;
  explicit ReferenceBackend(const CpuOptions& options) : options_(options) {}

  const BackendTraits& traits() const override { return traits_; }
  std::string instruction_set() const override { return "scalar"; }

  std::shared_ptr<std::byte[]> allocate(std::size_t bytes, const std::string& what) override;
  Weight load_weight(const WeightSpec& spec, WeightSource& source) override;
  std::size_t weight_bytes() const override { return weight_bytes_; }

  void embed(const Weight& table, std::span<const std::int32_t> tokens, float scale, Tensor x) override;
  void rms_norm(const TrackWeights& weights, NormRule rule, Tensor x, Tensor out) override;
  void linear(std::span<const LinearJob> jobs) override;
  void add(Tensor a, Tensor h) override;
  void copy(Tensor x, Tensor out) override;
  void glu(FfnActivation activation, Tensor gate, Tensor up) override;
  void moe_ffn(const MoeJob& job) override;
  void rope_angles(std::span<const std::int32_t> positions, const RopeFrequencies& rope,
                   Tensor cos_sin) override;
  void rope_append(const AttentionShape& shape, const TrackWeights& q_norm, const TrackWeights& k_norm,
                   Tensor cos_sin, Tensor q, Tensor k, Tensor v, const StepRows& rows, std::int64_t layer,
                   const KvPool& pool) override;
  void attention(const AttentionShape& shape, Tensor q, const StepRows& rows, std::int64_t layer,
                 const KvPool& pool, Tensor out) override;
  void subtract(Tensor x, Tensor y) override;
  void tree_sum(std::span<const float* const> parts, std::int64_t count, float scale, const float* add_to,
                float* out) override;
  void sample(Tensor logits, std::span<const SampleParams> params, std::span<Sampled> out) override;
  void log_probs(Tensor logits, std::span<const std::int32_t> targets, std::span<Scored> out) override;
  void top_log_probs(Tensor logits, std::span<const std::int32_t> counts,
                     std::span<TopLogprobs> out) override;

 private:
  CpuOptions options_;
  BackendTraits traits_{.name = "reference"};
  std::vector<std::vector<std::byte>> loaded_;
  std::size_t weight_bytes_ = 0;
};

// Element `index` of a weight of the reference, counted in the file's order.
float weight_element(const Weight& w, std::int64_t index);

}  // namespace ptrt
