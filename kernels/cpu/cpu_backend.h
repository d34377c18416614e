// The CPU backend. It keeps memory and the thread pool; every op is a free function or a small
// class of its own file.
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/attention/attention.h"
#include "kernels/cpu/host/thread_pool.h"
#include "kernels/cpu/matmul/matmul.h"
#include "kernels/cpu/ops/moe.h"
#include "kernels/cpu/ops/sampling.h"
#include "kernels/cpu/weights/weight_loader.h"
#include "kernels/make_cpu_backend.h"

namespace ptrt {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const CpuOptions& options);
  // Workers that wait may be reading weights: they end before the weights go.
  ~CpuBackend() override { pool_.stop(); }

  const BackendTraits& traits() const override { return traits_; }
  std::string instruction_set() const override;

  std::shared_ptr<std::byte[]> allocate(std::size_t bytes, const std::string& what) override;
  Weight load_weight(const WeightSpec& spec, WeightSource& source) override;
  std::vector<Weight> load_weights(std::span<const WeightLoad> loads) override;
  std::size_t weight_bytes() const override { return loader_.bytes(); }
  std::size_t mapped_bytes() const override { return loader_.mapped_bytes(); }

  void parallel_over_tracks(std::int64_t tracks,
                            const std::function<void(std::int64_t, Backend&)>& body) override;

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
  BackendTraits traits_;
  ThreadPool pool_;
  WeightLoader loader_;
  Matmul matmul_;
  Attention attention_;
  Moe moe_;
  Sampler sampler_;
  std::vector<Product> products_;  // of one linear() call
  // One a worker, each with scratch of its own and the worker as its only thread.
  std::vector<std::unique_ptr<CpuBackend>> lanes_;
};

}  // namespace ptrt
