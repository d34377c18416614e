#include "model_io/config/tensor_names.h"

#include <fmt/format.h>

#include <array>
#include <string_view>
#include <utility>

#include "kernels/int8.h"

namespace ptrt {
namespace {

// Names within a group, by TensorId.
constexpr std::array kNames = std::to_array<std::string_view>({
    "embedding",
    "lm_head",
    "final_norm",
    "dispatch_norm",
    "combine_norm",
    "attn_norm",
    "attn_output_norm",
    "attn_post_norm",
    "ffn_norm",
    "ffn_output_norm",
    "ffn_post_norm",
    "wq",
    "wk",
    "wv",
    "wo",
    "bq",
    "bk",
    "bv",
    "bo",
    "q_norm",
    "k_norm",
    "w_gate",
    "w_up",
    "w_down",
    "router",
    "experts/w_gate",
    "experts/w_up",
    "experts/w_down",
});
static_assert(kNames.size() == static_cast<std::size_t>(TensorId::expert_down) + 1);

// Collects the tensors of one group.
class GroupTensors {
 public:
  explicit GroupTensors(std::string group) : group_(std::move(group)) {}

  void vector(TensorId id, std::int64_t n) { add(id, {n}, WeightRole::vector); }
  void matrix(TensorId id, std::int64_t out, std::int64_t in) { add(id, {out, in}, WeightRole::matrix); }
  void experts(TensorId id, std::int64_t count, std::int64_t out, std::int64_t in) {
    add(id, {count, out, in}, WeightRole::matrix);
  }
  void add(TensorId id, std::vector<std::int64_t> shape, WeightRole role) {
    const std::string_view name = kNames[static_cast<std::size_t>(id)];
    tensors_.push_back({fmt::format("{}/{}", group_, name), std::move(shape), role, id});
  }
  std::vector<TensorSpec> take() { return std::move(tensors_); }

 private:
  std::string group_;
  std::vector<TensorSpec> tensors_;
};

}  // namespace

std::int64_t TensorSpec::elements() const {
  std::int64_t product = 1;
  for (const std::int64_t extent : shape) product *= extent;
  return product;
}

WeightSpec TensorSpec::weight(DType dtype, DType widened) const {
  WeightSpec weight{path, role, dtype, 1, 1, shape.back(), widened};
  if (shape.size() >= 2) weight.out = shape[shape.size() - 2];
  if (shape.size() == 3) weight.count = shape[0];
  return weight;
}

std::string scale_path(const TensorSpec& spec) {
  return spec.path + ".scale";
}

std::vector<std::int64_t> scale_shape(const TensorSpec& spec, DType dtype) {
  std::vector<std::int64_t> shape = spec.shape;
  if (dtype == DType::float8_e4m3)
    shape.pop_back();
  else
    shape.back() = int8_groups(shape.back());
  return shape;
}

std::string track_group(std::int64_t track) {
  return fmt::format("/tracks/{:02}", track);
}

std::string layer_path(std::int64_t track, std::int64_t layer) {
  return fmt::format("{}/layers/{:03}", track_group(track), layer);
}

std::string block_path(std::int64_t track, std::int64_t block) {
  return fmt::format("{}/blocks/{:02}", track_group(track), block);
}

std::vector<TensorSpec> shared_tensors(const ModelConfig& config) {
  using enum TensorId;
  GroupTensors tensors("/shared");
  tensors.add(embedding, {config.vocab_size, config.hidden_size},
              config.tie_embeddings ? WeightRole::tied_embedding : WeightRole::embedding);
  if (!config.tie_embeddings) tensors.matrix(lm_head, config.vocab_size, config.hidden_size);
  tensors.vector(final_norm, config.hidden_size);
  return tensors.take();
}

std::vector<TensorSpec> block_tensors(const ModelConfig& config, std::int64_t track, std::int64_t block) {
  using enum TensorId;
  GroupTensors tensors(block_path(track, block));
  if (config.fusion.dispatch_norm) tensors.vector(dispatch_norm, config.hidden_size);
  if (config.fusion.combine_norm) tensors.vector(combine_norm, config.hidden_size);
  return tensors.take();
}

std::vector<TensorSpec> layer_tensors(const ModelConfig& config, std::int64_t track, std::int64_t layer) {
  using enum TensorId;
  const std::int64_t d = config.hidden_size, head_dim = config.head_dim;
  GroupTensors tensors(layer_path(track, layer));
  if (config.norm_placement.pre) tensors.vector(attn_norm, d);
  tensors.matrix(wq, config.heads * head_dim, d);
  tensors.matrix(wk, config.kv_heads * head_dim, d);
  tensors.matrix(wv, config.kv_heads * head_dim, d);
  tensors.matrix(wo, d, config.heads * head_dim);
  if (config.attention_bias.q) tensors.vector(bq, config.heads * head_dim);
  if (config.attention_bias.k) tensors.vector(bk, config.kv_heads * head_dim);
  if (config.attention_bias.v) tensors.vector(bv, config.kv_heads * head_dim);
  if (config.attention_bias.o) tensors.vector(bo, d);
  if (config.qk_norm) tensors.vector(q_norm, head_dim);
  if (config.qk_norm) tensors.vector(k_norm, head_dim);
  if (config.norm_placement.output) tensors.vector(attn_output_norm, d);
  if (config.norm_placement.post) tensors.vector(attn_post_norm, d);

  if (config.norm_placement.pre) tensors.vector(ffn_norm, d);
  if (config.ffn_kind(layer) == FfnKind::dense) {
    tensors.matrix(w_gate, config.ffn_size, d);
    tensors.matrix(w_up, config.ffn_size, d);
    tensors.matrix(w_down, d, config.ffn_size);
  } else {
    const std::int64_t experts = config.moe->experts, ffn_size = config.moe->ffn_size;
    tensors.add(router, {experts, d}, WeightRole::router);
    tensors.experts(expert_gate, experts, ffn_size, d);
    tensors.experts(expert_up, experts, ffn_size, d);
    tensors.experts(expert_down, experts, d, ffn_size);
  }
  if (config.norm_placement.output) tensors.vector(ffn_output_norm, d);
  if (config.norm_placement.post) tensors.vector(ffn_post_norm, d);
  return tensors.take();
}

std::vector<TensorSpec> track_tensors(const ModelConfig& config, std::int64_t track) {
  std::vector<TensorSpec> tensors;
  for (std::int64_t block = 0; block < config.blocks(); ++block)
    for (TensorSpec& tensor : block_tensors(config, track, block)) tensors.push_back(std::move(tensor));
  for (std::int64_t layer = 0; layer < config.layers; ++layer)
    for (TensorSpec& tensor : layer_tensors(config, track, layer)) tensors.push_back(std::move(tensor));
  return tensors;
}

std::vector<TensorSpec> model_tensors(const ModelConfig& config) {
  std::vector<TensorSpec> tensors = shared_tensors(config);
  for (std::int64_t track = 0; track < config.tracks; ++track)
    for (TensorSpec& spec : track_tensors(config, track)) tensors.push_back(std::move(spec));
  return tensors;
}

}  // namespace ptrt
