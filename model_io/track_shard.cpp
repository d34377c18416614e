#include "model_io/track_shard.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <xxhash.h>

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/error.h"
#include "model_io/crc32c.h"
#include "model_io/random_init.h"

namespace ptrt {
namespace {

struct LayerSlot {
  std::string_view name;  // within the layer's group
  TrackWeights LayerWeights::*weights;
};

constexpr std::array<LayerSlot, 19> kLayerSlots{{
    {"attn_norm", &LayerWeights::attn_norm},
    {"attn_output_norm", &LayerWeights::attn_output_norm},
    {"attn_post_norm", &LayerWeights::attn_post_norm},
    {"ffn_norm", &LayerWeights::ffn_norm},
    {"ffn_output_norm", &LayerWeights::ffn_output_norm},
    {"ffn_post_norm", &LayerWeights::ffn_post_norm},
    {"wq", &LayerWeights::wq},
    {"wk", &LayerWeights::wk},
    {"wv", &LayerWeights::wv},
    {"wo", &LayerWeights::wo},
    {"q_norm", &LayerWeights::q_norm},
    {"k_norm", &LayerWeights::k_norm},
    {"w_gate", &LayerWeights::w_gate},
    {"w_up", &LayerWeights::w_up},
    {"w_down", &LayerWeights::w_down},
    {"router", &LayerWeights::router},
    {"experts/w_gate", &LayerWeights::expert_gate},
    {"experts/w_up", &LayerWeights::expert_up},
    {"experts/w_down", &LayerWeights::expert_down},
}};

TrackWeights& slot_of(LayerWeights& layer, std::string_view name) {
  for (const LayerSlot& slot : kLayerSlots)
    if (slot.name == name) return layer.*slot.weights;
  throw_failure("internal error: no place for the layer tensor {}", name);
}

TrackWeights& slot_of(BlockWeights& block, std::string_view name) {
  return name == "dispatch_norm" ? block.dispatch_norm : block.combine_norm;
}

// A tensor of random elements.
class RandomTensor final : public TensorContent {
 public:
  RandomTensor(const ModelConfig& config, const TensorSpec& spec, std::uint64_t seed, DType dtype)
      : config_(config),
        spec_(spec),
        seed_(seed),
        dtype_(dtype),
        crc_(static_cast<std::size_t>(spec.elements()) * size_of(dtype)) {}

  DType dtype() const override { return dtype_; }
  void read(std::int64_t first, std::span<std::byte> rows) override {
    const std::int64_t element = first * spec_.shape.back();
    random_elements(config_, spec_, seed_, dtype_, element, rows);
    crc_.add(static_cast<std::size_t>(element) * size_of(dtype_), rows);
  }
  void read_scales(std::int64_t, std::span<std::byte>) override {
    throw_failure("{} has no scales", spec_.path);
  }
  std::string verify() const override {
    PTRT_CHECK(crc_.complete());
    return fmt::format("{:08x}", crc_.value());
  }
  std::string claim() const override { return "random"; }

 private:
  const ModelConfig& config_;
  const TensorSpec& spec_;
  std::uint64_t seed_;
  DType dtype_;
  Crc32cOfPieces crc_;
};

// Some rows of a tensor, as a tensor of its own.
class PartOfRows final : public WeightSource {
 public:
  PartOfRows(WeightSource& whole, std::int64_t first) : whole_(whole), first_(first) {}
  void read(std::int64_t first, std::span<std::byte> rows) override { whole_.read(first_ + first, rows); }
  void read_scales(std::int64_t first, std::span<std::byte> scales) override {
    whole_.read_scales(first_ + first, scales);
  }

 private:
  WeightSource& whole_;
  std::int64_t first_;
};

// Knows the tensors of a shard, and opens them one by one.
struct TensorSource {
  std::function<DType(const TensorSpec&)> dtype;
  std::function<std::unique_ptr<TensorContent>(const TensorSpec&)> open;
};

// Takes tensors into the backend, keeping account of what they were.
class Loader {
 public:
  Loader(const TensorSource& source, Backend& backend) : source_(source), backend_(backend) {}

  Weight load(const TensorSpec& spec) { return load(std::vector<TensorSpec>{spec})[0]; }

  // All of them at once, so that threads need not wait for each other after each.
  std::vector<Weight> load(const std::vector<TensorSpec>& specs) {
    std::vector<std::unique_ptr<TensorContent>> contents;
    std::vector<WeightLoad> loads;
    for (const TensorSpec& spec : specs) {
      contents.push_back(source_.open(spec));
      loads.push_back({spec.weight(contents.back()->dtype()), contents.back().get()});
    }
    std::vector<Weight> weights = backend_.load_weights(loads);
    for (std::size_t i = 0; i < specs.size(); ++i) account(specs[i], *contents[i], contents[i]->verify());
    return weights;
  }

  Weight load_rows(const TensorSpec& spec, const HeadRows& rows) {
    const std::unique_ptr<TensorContent> content = source_.open(spec);
    PartOfRows part(*content, rows.first);
    WeightSpec weight = spec.weight(content->dtype());
    weight.out = rows.count;
    if (spec.role != WeightRole::tied_embedding) account(spec, *content, content->claim());
    return backend_.load_weight(weight, part);
  }

  // Of everything loaded since the last call.
  std::uint64_t take_digest() {
    const std::uint64_t digest = XXH3_64bits(account_.data(), account_.size());
    account_.clear();
    return digest;
  }

 private:
  void account(const TensorSpec& spec, const TensorContent& content, const std::string& checksums) {
    account_ += fmt::format("{} [{}] {} {}\n", spec.path, fmt::join(spec.shape, ","),
                            to_string(content.dtype()), checksums);
  }

  const TensorSource& source_;
  Backend& backend_;
  std::string account_;
};

bool is_head(const TensorSpec& spec) {
  return spec.path == "/shared/lm_head" || spec.role == WeightRole::tied_embedding;
}

void load_shared(const ModelConfig& config, Loader& loader, TrackShard& shard) {
  const bool split = shard.head_rows.count > 0;
  for (TensorSpec spec : shared_tensors(config)) {
    if (split && is_head(spec)) {
      shard.lm_head = loader.load_rows(spec, shard.head_rows);
      if (spec.role != WeightRole::tied_embedding) continue;
      spec.role = WeightRole::embedding;  // the table is only looked up then
    }
    const Weight weight = loader.load(spec);
    if (spec.path == "/shared/embedding") shard.embedding = weight;
    if (spec.path == "/shared/lm_head") shard.lm_head = weight;
    if (spec.path == "/shared/final_norm") shard.final_norm = {weight};
  }
  if (config.tie_embeddings && !split) shard.lm_head = shard.embedding;
  shard.shared_digest = loader.take_digest();
}

template <typename Slots>
void load_group(const std::string& group, const std::vector<TensorSpec>& tensors, Loader& loader,
                Slots& slots) {
  const std::vector<Weight> weights = loader.load(tensors);
  for (std::size_t i = 0; i < tensors.size(); ++i)
    slot_of(slots, std::string_view(tensors[i].path).substr(group.size() + 1)).push_back(weights[i]);
}

void load_track(const ModelConfig& config, std::int64_t track, Loader& loader, TrackShard& shard) {
  for (std::int64_t block = 0; block < config.blocks(); ++block)
    load_group(block_path(track, block), block_tensors(config, track, block), loader,
               shard.blocks[static_cast<std::size_t>(block)]);
  for (std::int64_t layer = 0; layer < config.layers; ++layer)
    load_group(layer_path(track, layer), layer_tensors(config, track, layer), loader,
               shard.layers[static_cast<std::size_t>(layer)]);
  shard.track_digests.push_back(loader.take_digest());
}

TrackShard load_from(const TensorSource& source, const ModelConfig& config, std::int64_t first_track,
                     std::int64_t tracks, Backend& backend, HeadRows head) {
  PTRT_CHECK(first_track >= 0 && tracks >= 1 && first_track + tracks <= config.tracks);
  std::vector<WeightSpec> weights;
  const auto plan = [&](const std::vector<TensorSpec>& tensors) {
    for (const TensorSpec& spec : tensors) weights.push_back(spec.weight(source.dtype(spec)));
  };
  plan(shared_tensors(config));
  for (std::int64_t track = first_track; track < first_track + tracks; ++track)
    plan(track_tensors(config, track));
  backend.plan_weights(weights);
  Loader loader(source, backend);
  TrackShard shard;
  shard.first_track = first_track;
  shard.tracks = tracks;
  shard.head_rows = head;
  shard.layers.resize(static_cast<std::size_t>(config.layers));
  shard.blocks.resize(static_cast<std::size_t>(config.blocks()));
  load_shared(config, loader, shard);
  for (std::int64_t track = first_track; track < first_track + tracks; ++track)
    load_track(config, track, loader, shard);
  return shard;
}

}  // namespace

LayerWeights of_track(const LayerWeights& layer, std::size_t track) {
  LayerWeights part;
  for (const LayerSlot& slot : kLayerSlots)
    if (const TrackWeights& all = layer.*slot.weights; !all.empty()) part.*slot.weights = {all[track]};
  return part;
}

BlockWeights of_track(const BlockWeights& block, std::size_t track) {
  BlockWeights part;
  for (const auto member : {&BlockWeights::dispatch_norm, &BlockWeights::combine_norm})
    if (const TrackWeights& all = block.*member; !all.empty()) part.*member = {all[track]};
  return part;
}

TrackShard load_shard(const ModelFile& file, std::int64_t first_track, std::int64_t tracks, Backend& backend,
                      HeadRows head) {
  const ModelConfig& config = file.config();
  std::map<std::string, StoredTensor> all;
  const auto check = [&](const std::vector<TensorSpec>& tensors) {
    for (const TensorSpec& spec : tensors) all.emplace(spec.path, file.stat(spec));
  };
  check(shared_tensors(config));
  for (std::int64_t track = first_track; track < first_track + tracks; ++track)
    check(track_tensors(config, track));
  const TensorSource source{[&](const TensorSpec& spec) { return all.at(spec.path).dtype; },
                            [&](const TensorSpec& spec) { return file.open(all.at(spec.path)); }};
  return load_from(source, config, first_track, tracks, backend, head);
}

bool can_split_head(const ModelFile& file) {
  for (const TensorSpec& spec : shared_tensors(file.config()))
    if (const StoredTensor stored = file.stat(spec); is_head(spec))
      return stored.crc32c && (!stored.scales || stored.scales->crc32c);
  return false;
}

TrackShard random_shard(const ModelConfig& config, std::uint64_t seed, DType dtype, std::int64_t first_track,
                        std::int64_t tracks, Backend& backend, HeadRows head) {
  const TensorSource source{
      [&](const TensorSpec&) { return dtype; },
      [&](const TensorSpec& spec) { return std::make_unique<RandomTensor>(config, spec, seed, dtype); }};
  return load_from(source, config, first_track, tracks, backend, head);
}

}  // namespace ptrt
