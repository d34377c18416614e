#include "runtime/trace/traced_backend.h"

#include <utility>

namespace ptrt {
namespace {

constexpr const char* kRows = "rows";

std::int64_t rows_of(std::span<const LinearJob> jobs) {
  return jobs.empty() ? 0 : jobs.front().x.rows;
}

// Every op goes to the other backend as it is: none of the defaults that make one op of several.
class TracedBackend final : public Backend {
 public:
  TracedBackend(Backend& inner, Tracer& tracer) : inner_(inner), tracer_(tracer) {}

  const BackendTraits& traits() const override { return inner_.traits(); }
  std::string instruction_set() const override { return inner_.instruction_set(); }
  std::shared_ptr<std::byte[]> allocate(std::size_t bytes, const std::string& what) override {
    return inner_.allocate(bytes, what);
  }
  void write(std::span<const std::byte> from, std::byte* to) override { inner_.write(from, to); }
  void read_back(const std::byte* from, std::span<std::byte> to) override { inner_.read_back(from, to); }
  std::optional<std::size_t> free_bytes() const override { return inner_.free_bytes(); }
  void reserve(const WorkLimits& limits) override { inner_.reserve(limits); }
  void plan_weights(std::span<const WeightSpec> specs) override { inner_.plan_weights(specs); }
  Weight load_weight(const WeightSpec& spec, WeightSource& source) override {
    return inner_.load_weight(spec, source);
  }
  std::vector<Weight> load_weights(std::span<const WeightLoad> loads) override {
    return inner_.load_weights(loads);
  }
  std::size_t weight_bytes() const override { return inner_.weight_bytes(); }
  std::size_t mapped_bytes() const override { return inner_.mapped_bytes(); }
  DeviceGroups* device_groups() override { return inner_.device_groups(); }
  void parallel_over_tracks(std::int64_t tracks,
                            const std::function<void(std::int64_t, Backend&)>& body) override {
    const TraceSpan span(&tracer_, "tracks", "tracks", tracks);
    inner_.parallel_over_tracks(tracks, [&](std::int64_t track, Backend& lane) {
      TracedBackend traced(lane, tracer_);
      body(track, traced);
    });
  }

  void set_step_inputs(std::span<const std::int32_t> tokens, const StepRows& rows) override {
    inner_.set_step_inputs(tokens, rows);
  }
  // A replay is one event: none of its ops goes through here.
  bool run_recorded(std::int64_t key, const std::function<void()>& ops) override {
    const TraceSpan span(&tracer_, "recorded step", kRows, key);
    return inner_.run_recorded(key, ops);
  }
  void drop_recorded() noexcept override { inner_.drop_recorded(); }
  std::optional<ReplayTimes> take_replay_times() override { return inner_.take_replay_times(); }
  void mark_idle() override { inner_.mark_idle(); }
  void queue_sample(Tensor logits, std::span<const SampleParams> params,
                    std::span<const std::int32_t> top_counts) override {
    const TraceSpan span(&tracer_, "queue_sample", kRows, logits.rows);
    inner_.queue_sample(logits, params, top_counts);
  }
  void take_sampled(std::span<Sampled> out, std::span<TopLogprobs> top) override {
    const TraceSpan span(&tracer_, "take_sampled");
    inner_.take_sampled(out, top);
  }

  void embed(const Weight& table, std::span<const std::int32_t> tokens, float scale, Tensor x) override {
    const TraceSpan span(&tracer_, "embed", kRows, x.rows);
    inner_.embed(table, tokens, scale, x);
  }
  void rms_norm(const TrackWeights& weights, NormRule rule, Tensor x, Tensor out) override {
    const TraceSpan span(&tracer_, "rms_norm", kRows, x.rows);
    inner_.rms_norm(weights, rule, x, out);
  }
  void add_rms_norm(Tensor a, Tensor h, const TrackWeights& weights, NormRule rule, Tensor out) override {
    const TraceSpan span(&tracer_, "add_rms_norm", kRows, h.rows);
    inner_.add_rms_norm(a, h, weights, rule, out);
  }
  void linear(std::span<const LinearJob> jobs) override {
    const TraceSpan span(&tracer_, "linear", kRows, rows_of(jobs));
    inner_.linear(jobs);
  }
  void gated_linear(FfnActivation activation, const LinearJob& gate, const LinearJob& up) override {
    const TraceSpan span(&tracer_, "gated_linear", kRows, gate.x.rows);
    inner_.gated_linear(activation, gate, up);
  }
  void moe_ffn(const MoeJob& job) override {
    const TraceSpan span(&tracer_, "moe_ffn", kRows, job.x.rows);
    inner_.moe_ffn(job);
  }
  void add(Tensor a, Tensor h) override {
    const TraceSpan span(&tracer_, "add", kRows, h.rows);
    inner_.add(a, h);
  }
  void subtract(Tensor x, Tensor y) override {
    const TraceSpan span(&tracer_, "subtract", kRows, y.rows);
    inner_.subtract(x, y);
  }
  void glu(FfnActivation activation, Tensor gate, Tensor up) override {
    const TraceSpan span(&tracer_, "glu", kRows, gate.rows);
    inner_.glu(activation, gate, up);
  }
  void copy(Tensor x, Tensor out) override {
    const TraceSpan span(&tracer_, "copy", kRows, out.rows);
    inner_.copy(x, out);
  }
  void gather_rows(Tensor x, std::span<const std::int32_t> rows, Tensor out) override {
    const TraceSpan span(&tracer_, "gather_rows", kRows, out.rows);
    inner_.gather_rows(x, rows, out);
  }
  void keep_rows(Tensor x, std::span<const std::int32_t> rows) override {
    const TraceSpan span(&tracer_, "keep_rows", kRows, std::ssize(rows));
    inner_.keep_rows(x, rows);
  }
  void rope_angles(std::span<const std::int32_t> positions, const RopeFrequencies& rope,
                   Tensor cos_sin) override {
    const TraceSpan span(&tracer_, "rope_angles", kRows, cos_sin.rows);
    inner_.rope_angles(positions, rope, cos_sin);
  }
  void rope_append(const AttentionShape& shape, const TrackWeights& q_norm, const TrackWeights& k_norm,
                   Tensor cos_sin, Tensor q, Tensor k, Tensor v, const StepRows& rows, std::int64_t layer,
                   const KvPool& pool) override {
    const TraceSpan span(&tracer_, "rope_append", "layer", layer);
    inner_.rope_append(shape, q_norm, k_norm, cos_sin, q, k, v, rows, layer, pool);
  }
  void attention(const AttentionShape& shape, Tensor q, const StepRows& rows, std::int64_t layer,
                 const KvPool& pool, Tensor out) override {
    const TraceSpan span(&tracer_, "attention", "layer", layer);
    inner_.attention(shape, q, rows, layer, pool, out);
  }
  void tree_sum(std::span<const float* const> parts, std::int64_t count, float scale, const float* add_to,
                float* out) override {
    const TraceSpan span(&tracer_, "tree_sum", "values", count);
    inner_.tree_sum(parts, count, scale, add_to, out);
  }
  void end_block(const BlockEnd& end) override {
    const TraceSpan span(&tracer_, "end_block", kRows, end.h.rows);
    inner_.end_block(end);
  }
  void begin_block(const BlockBegin& begin) override {
    const TraceSpan span(&tracer_, "begin_block", kRows, begin.h.rows);
    inner_.begin_block(begin);
  }
  void sample(Tensor logits, std::span<const SampleParams> params, std::span<Sampled> out) override {
    const TraceSpan span(&tracer_, "sample", kRows, logits.rows);
    inner_.sample(logits, params, out);
  }
  void log_probs(Tensor logits, std::span<const std::int32_t> targets, std::span<Scored> out) override {
    const TraceSpan span(&tracer_, "log_probs", kRows, logits.rows);
    inner_.log_probs(logits, targets, out);
  }
  void top_log_probs(Tensor logits, std::span<const std::int32_t> counts,
                     std::span<TopLogprobs> out) override {
    const TraceSpan span(&tracer_, "top_log_probs", kRows, logits.rows);
    inner_.top_log_probs(logits, counts, out);
  }

 private:
  Backend& inner_;
  Tracer& tracer_;
};

}  // namespace

std::unique_ptr<Backend> make_traced_backend(Backend& inner, Tracer& tracer) {
  return std::make_unique<TracedBackend>(inner, tracer);
}

}  // namespace ptrt
