// The CUDA backend: one device and one stream, in which ops run in the order of the calls.
// Activations, keys and values have one activation dtype, bfloat16 or float16; so have matrices, except those
// that are stored in 8 bits and stay so. The streams x and h, statistics and accumulators are float32. No op waits or allocates unless
// kernels/backend.h says so; sizes come from reserve(), the rows of a step from set_step_inputs().
#pragma once

#include <memory>

#include "kernels/backend.h"
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/host/device_groups.h"
#include "kernels/cuda/host/replay_clock.h"
#include "kernels/cuda/host/step_graph.h"
#include "kernels/cuda/host/step_input.h"
#include "kernels/cuda/host/weight_loader.h"
#include "kernels/cuda/matmul/moe.h"
#include "kernels/cuda/matmul/products.h"
#include "kernels/cuda/ops/sampling.h"

namespace ptrt {

class CudaBackend final : public Backend {
 public:
  // For the current device (cudaSetDevice). `device_name`: for messages and digests. `graphs`:
  // whether steps are recorded. `activation_dtype`: bfloat16 or float16.
  explicit CudaBackend(const std::string& device_name, bool graphs = true,
                       DType activation_dtype = DType::bfloat16);

  const BackendTraits& traits() const override { return traits_; }
  std::string instruction_set() const override { return device_name_; }
  cudaStream_t stream() const { return stream_.get(); }  // all ops run in it

  std::shared_ptr<std::byte[]> allocate(std::size_t bytes, const std::string& what) override;
  Weight load_weight(const WeightSpec& spec, WeightSource& source) override;
  std::size_t weight_bytes() const override { return loader_.bytes(); }
  std::optional<std::size_t> free_bytes() const override;

  DeviceGroups* device_groups() override { return &groups_; }
  void plan_weights(std::span<const WeightSpec> specs) override { loader_.plan(specs); }
  void reserve(const WorkLimits& limits) override;
  void set_step_inputs(std::span<const std::int32_t> tokens, const StepRows& rows) override;
  void drop_recorded() noexcept override;
  bool run_recorded(std::int64_t key, const std::function<void()>& ops) override;
  std::optional<ReplayTimes> take_replay_times() override;
  void mark_idle() override { clock_.mark_idle(); }
  void write(std::span<const std::byte> from, std::byte* to) override;
  void read_back(const std::byte* from, std::span<std::byte> to) override;

  void embed(const Weight& table, std::span<const std::int32_t> tokens, float scale, Tensor x) override;
  void rms_norm(const TrackWeights& weights, NormRule rule, Tensor x, Tensor out) override;
  void add_rms_norm(Tensor a, Tensor h, const TrackWeights& weights, NormRule rule, Tensor out) override;
  void linear(std::span<const LinearJob> jobs) override;
  void gated_linear(FfnActivation activation, const LinearJob& gate, const LinearJob& up) override;
  void add(Tensor a, Tensor h) override;
  void copy(Tensor x, Tensor out) override;
  void join_columns(const float* parts, std::int64_t stride, std::int64_t width, Tensor out) override;
  void gather_rows(Tensor x, std::span<const std::int32_t> rows, Tensor out) override;
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
  void end_block(const BlockEnd& end) override;
  void begin_block(const BlockBegin& begin) override;
  void tree_sum(std::span<const float* const> parts, std::int64_t count, float scale, const float* add_to,
                float* out) override;
  void sample(Tensor logits, std::span<const SampleParams> params, std::span<Sampled> out) override;
  void queue_sample(Tensor logits, std::span<const SampleParams> params,
                    std::span<const std::int32_t> top_counts) override;
  void take_sampled(std::span<Sampled> out, std::span<TopLogprobs> top) override;
  void log_probs(Tensor logits, std::span<const std::int32_t> targets, std::span<Scored> out) override;
  void top_log_probs(Tensor logits, std::span<const std::int32_t> counts,
                     std::span<TopLogprobs> out) override;

 private:
  // Sized by reserve().
  struct Scratch {
    Scratch(const WorkLimits& work_limits, const Stream& stream);
    WorkLimits limits;
    cuda::StepInput step;
    cuda::DecodeAttention decode_attention;
    cuda::Moe moe;
    cuda::Sampler sampler;
    cuda::StepGraphs graphs;
  };
  Scratch& scratch();
  void check_logits(const Tensor& logits, std::size_t rows);
  void check_edits(const Tensor& logits, const LogitEdits* edits);
  static void check_counts(const Tensor& logits, std::span<const std::int32_t> counts);
  void check_matrices(const TrackWeights& weights, std::int64_t tracks, std::int64_t out,
                      std::int64_t in) const;
  void check_activation(const Tensor& x) const;
  void check_activation_or_fp32(const Tensor& x) const;

  std::string device_name_;
  bool graphs_;
  DType activation_dtype_;
  BackendTraits traits_;
  Stream stream_;
  cuda::ReplayClock clock_;
  cuda::CudaGroups groups_;
  cuda::WeightLoader loader_;
  cuda::Products products_;
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace ptrt
