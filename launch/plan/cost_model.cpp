#include "launch/plan/cost_model.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/error.h"
#include "model_io/config/tensor_names.h"
#include "model_io/shard/track_split.h"
#include "runtime/job/placement.h"

namespace ptrt {
namespace {

constexpr double kWeightBytes = 2, kCandidateBytes = 8;
constexpr double kMemoryShare = 0.9;  // of a processor's memory, for weights and KV

// One rank's share of the model.
struct Share {
  double parameters = 0;  // in the layers
  double active = 0;      // of them, that a token uses
  double embedding = 0, head = 0;
  double kv_bytes_per_token = 0;
  double attention_ops = 0;  // of one token over one token of context
};

Share share_of(const ModelConfig& config, const Layout& layout) {
  const ModelConfig mine = config_of_rank(config, {layout.tensor_parallel, 0});
  const auto tracks = static_cast<double>(config.tracks / layout.fusion_ranks);
  const auto ranks = static_cast<double>(layout.fusion_ranks * layout.tensor_parallel);
  Share share;
  for (std::int64_t layer = 0; layer < mine.layers; ++layer)
    for (const TensorSpec& tensor : layer_tensors(mine, 0, layer)) {
      const double elements = tracks * static_cast<double>(tensor.elements());
      const bool expert = tensor.shape.size() == 3;
      share.parameters += elements;
      share.active +=
          expert ? elements * static_cast<double>(mine.moe->top_k) / static_cast<double>(mine.moe->experts)
                 : elements;
    }
  const auto table = static_cast<double>(config.vocab_size * config.hidden_size);
  share.head = table / ranks;
  share.embedding = table;
  const auto layers = static_cast<double>(mine.layers);
  share.kv_bytes_per_token =
      tracks * layers * 2 * static_cast<double>(mine.kv_heads * mine.head_dim) * kWeightBytes;
  share.attention_ops = tracks * layers * 4 * static_cast<double>(mine.heads * mine.head_dim);
  return share;
}

// Share of the experts that some of `rows` tokens choose, if all are as likely.
double experts_read(const ModelConfig& config, double rows) {
  const auto experts = static_cast<double>(config.moe->experts);
  return 1 - std::pow(1 - static_cast<double>(config.moe->top_k) / experts, rows);
}

struct StepTime {
  double compute_us = 0, sync_us = 0;
  double total_us() const { return compute_us + sync_us; }
};

struct Step {
  StepTime time;
  StepCounts counts;
};

enum class Kind { prefill, decode };

// Adds the latencies, messages and bytes of `times` collectives.
void add(StepCounts& counts, double times, const StepCounts& collective) {
  counts.hops += times * collective.hops;
  counts.messages += times * collective.messages;
  counts.moved_bytes += times * collective.moved_bytes;
  counts.host_hops += times * collective.host_hops;
  counts.host_bytes += times * collective.host_bytes;
}

double price_us(const LinkSpec& link, const StepCounts& counts) {
  const double within = counts.host_hops > 0 ? counts.host_hops * link.host_latency_us +
                                                   counts.host_bytes / (1e3 * link.host_gb_per_s)
                                             : 0;
  return counts.hops * link.latency_us + counts.messages * link.message_us +
         counts.moved_bytes / (1e3 * link.gb_per_s) + within;
}

// `hops` times n - 1 messages a rank of so many bytes.
StepCounts messages(const LinkSpec& link, std::int64_t ranks, double hops, double bytes) {
  const double sent = hops * static_cast<double>((ranks - 1) * (link.shared ? ranks : 1));
  return {.hops = hops, .messages = sent, .moved_bytes = sent * bytes};
}

StepCounts gathering(const LinkSpec& link, std::int64_t ranks, double bytes) {
  return ranks <= 1 ? StepCounts{} : messages(link, ranks, 1, bytes);
}

StepCounts sum(const LinkSpec& link, std::int64_t ranks, double bytes) {
  if (ranks <= 1) return {};
  const std::int64_t on_host = std::max<std::int64_t>(link.host_ranks, 1);
  if (on_host > 1 && ranks <= on_host)
    return {.host_hops = 1, .host_bytes = static_cast<double>(ranks - 1) * bytes};
  if (on_host > 1 && ranks % on_host == 0) {
    LinkSpec between = link;
    between.host_ranks = 0;
    StepCounts counts = sum(between, ranks / on_host, bytes);
    counts.host_hops = 2;
    counts.host_bytes = static_cast<double>(on_host) * bytes;
    return counts;
  }
  const StepCounts one = messages(link, ranks, 1, bytes);
  const StepCounts two = messages(link, ranks, 2, bytes / static_cast<double>(ranks));
  if (link.two_step_bytes > 0) return bytes >= link.two_step_bytes ? two : one;
  return price_us(link, one) <= price_us(link, two) ? one : two;
}

class Model {
 public:
  Model(const ModelConfig& config, const Layout& layout, const GpuSpec& gpu, const LinkSpec& link)
      : config_(config), layout_(layout), gpu_(gpu), link_(link), share_(share_of(config, layout)) {}

  const Share& share() const { return share_; }

  // `rows` tokens of `sequences` sequences, each row seeing `context` tokens on average.
  Step step(Kind kind, double rows, double sequences, double context) const {
    Step step;
    StepCounts& counts = step.counts;
    const double read_share = config_.moe ? experts_read(config_, rows) : 1;
    const double idle = (share_.parameters - share_.active) * (1 - read_share);
    counts.weight_bytes = (share_.parameters - std::max(0.0, idle) + share_.head) * kWeightBytes;
    counts.ops = 2 * rows * share_.active + 2 * sequences * share_.head;
    counts.kv_bytes = sequences * context * share_.kv_bytes_per_token;
    counts.attention_ops = rows * context * share_.attention_ops;
    step.time.compute_us = compute_us(kind, counts);
    count_syncs(rows, sequences, counts);
    const double layer_us = step.time.compute_us / static_cast<double>(config_.layers);
    step.time.sync_us = price_us(link_, counts) + gpu_.wait_layers * waits() * layer_us;
    return step;
  }

  // The sum over the points where ranks meet of the square roots of the layers since the one before. Two sums
  // a layer are half a layer apart.
  double waits() const {
    double sum = 0;
    if (layout_.fusion_ranks > 1)
      for (std::int64_t before = 0; const std::int64_t layer : config_.sync_layers) {
        sum += std::sqrt(static_cast<double>(layer - before));
        before = layer;
      }
    if (layout_.tensor_parallel > 1) sum += static_cast<double>(config_.layers) * std::sqrt(2.0);
    return sum;
  }

  double sync_points() const {
    const double fusions = config_.tracks > 1 ? static_cast<double>(config_.blocks()) : 0;
    return fusions + (layout_.tensor_parallel > 1 ? 2 * static_cast<double>(config_.layers) : 0);
  }

 private:
  // The products, then attention: each the greater of reading and working.
  double compute_us(Kind kind, const StepCounts& counts) const {
    const bool few_rows = kind == Kind::decode && gpu_.decode_gemm_efficiency > 0;
    const double rate = gpu_.gemm_tflops * (few_rows ? gpu_.decode_gemm_efficiency : gpu_.gemm_efficiency);
    const double own = gpu_.kv_bandwidth_efficiency;
    const auto greater = [&](double bytes, double efficiency, double ops) {
      return std::max(bytes / (1e3 * gpu_.memory_gb_per_s * efficiency), ops / (1e6 * rate));
    };
    return greater(counts.weight_bytes, gpu_.bandwidth_efficiency, counts.ops) +
           greater(counts.kv_bytes, own > 0 ? own : gpu_.bandwidth_efficiency, counts.attention_ops) +
           static_cast<double>(config_.layers) * gpu_.layer_overhead_us + gpu_.step_overhead_us;
  }

  void count_syncs(double rows, double sequences, StepCounts& counts) const {
    const double bytes = rows * static_cast<double>(config_.hidden_size) * link_.sum_bytes;
    const std::int64_t ranks = layout_.fusion_ranks * layout_.tensor_parallel;
    add(counts, static_cast<double>(config_.blocks()), sum(link_, layout_.fusion_ranks, bytes));
    add(counts, 2 * static_cast<double>(config_.layers), sum(link_, layout_.tensor_parallel, bytes));
    add(counts, 1, gathering(link_, ranks, sequences * kCandidateBytes));
  }

  const ModelConfig& config_;
  const Layout& layout_;
  const GpuSpec& gpu_;
  const LinkSpec& link_;
  Share share_;
};

void add(Step& all, const Step& step) {
  all.time.compute_us += step.time.compute_us;
  all.time.sync_us += step.time.sync_us;
  all.counts.weight_bytes += step.counts.weight_bytes;
  all.counts.kv_bytes += step.counts.kv_bytes;
  all.counts.ops += step.counts.ops;
  all.counts.attention_ops += step.counts.attention_ops;
  add(all.counts, 1, step.counts);
}

// A prompt in steps of at most step_tokens.
Step prefill(const Model& model, const Workload& work) {
  Step all;
  for (std::int64_t done = 0; done < work.input_len; done += work.step_tokens) {
    const auto rows = static_cast<double>(std::min(work.step_tokens, work.input_len - done));
    add(all, model.step(Kind::prefill, rows, 1, static_cast<double>(done) + rows / 2));
  }
  return all;
}

// All prompts of a batch, cut into steps one after the other as the scheduler does: all steps but the last
// are full. A row sees half a prompt on average, wherever the cuts are.
double prefill_us(const Model& model, const Workload& work) {
  if (work.batch == 1) return prefill(model, work).time.total_us();
  const auto length = static_cast<double>(work.input_len);
  const auto step_us = [&](std::int64_t tokens) {
    const auto rows = static_cast<double>(tokens);
    return model.step(Kind::prefill, rows, std::max(1.0, rows / length), length / 2).time.total_us();
  };
  const std::int64_t rows = work.batch * work.input_len, rest = rows % work.step_tokens;
  const auto full = static_cast<double>(rows / work.step_tokens);
  return full * step_us(work.step_tokens) + (rest > 0 ? step_us(rest) : 0);
}

}  // namespace

double sum_us(const LinkSpec& link, std::int64_t ranks, double bytes) {
  return price_us(link, sum(link, ranks, bytes));
}

Prediction predict(const ModelConfig& config, const Layout& layout, const Workload& work, const GpuSpec& gpu,
                   const LinkSpec& link) {
  PTRT_CHECK(work.input_len >= 1 && work.output_len >= 1 && work.batch >= 1 && work.step_tokens >= 1);
  const Model model(config, layout, gpu, link);
  const auto batch = static_cast<double>(work.batch), output = static_cast<double>(work.output_len);
  const auto input = static_cast<double>(work.input_len);
  Prediction p;
  const double tables = model.share().embedding + (config.tie_embeddings ? 0 : model.share().head);
  p.weight_bytes = (model.share().parameters + tables) * kWeightBytes;
  p.kv_bytes = batch * (input + output) * model.share().kv_bytes_per_token;
  p.fits = p.weight_bytes + p.kv_bytes <= kMemoryShare * gpu.memory_gib * 1073741824.0;
  const Step prompt = prefill(model, work),
             token = model.step(Kind::decode, batch, batch, input + output / 2);
  const StepTime& decode = token.time;
  p.prefill = prompt.counts;
  p.decode = token.counts;
  p.ttft_ms = 1e-3 * prompt.time.total_us();
  p.tpot_ms = 1e-3 * decode.total_us();
  const double batch_us = prefill_us(model, work) + (output - 1) * decode.total_us();
  p.output_tokens_per_s = static_cast<double>(layout.replicas) * batch * output / (1e-6 * batch_us);
  p.sync_points = model.sync_points();
  p.waits = model.waits();
  p.sync_fraction = decode.sync_us / decode.total_us();
  return p;
}

ModelConfig dense_twin(const ModelConfig& config) {
  ModelConfig dense = config;
  dense.name = config.name + ", dense";
  dense.tracks = 1;
  dense.sync_layers = {config.layers};
  dense.heads *= config.tracks;
  dense.kv_heads *= config.tracks;
  dense.ffn_size *= config.tracks;
  if (dense.moe) dense.moe->ffn_size *= config.tracks;
  return dense;
}

std::vector<Layout> layouts_of(const ModelConfig& config, std::int64_t world) {
  std::vector<Layout> found;
  for (const std::int64_t fusion_ranks : packed_sizes(config.tracks))
    for (const std::int64_t split : fitting_splits(config))
      if (world % (fusion_ranks * split) == 0)
        found.push_back({fusion_ranks, split, world / (fusion_ranks * split)});
  return found;
}

}  // namespace ptrt
