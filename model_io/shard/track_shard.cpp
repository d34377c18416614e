#include "model_io/shard/track_shard.h"

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

#include "kernels/base/error.h"
#include "model_io/file/crc32c.h"
#include "model_io/shard/random_init.h"

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
  void read_columns(std::int64_t first, std::int64_t count, std::int64_t column, std::int64_t columns,
                    std::span<std::byte> out) override {
    const std::size_t width = static_cast<std::size_t>(columns) * size_of(dtype_);
    for (std::int64_t r = 0; r < count; ++r)
      random_elements(config_, spec_, seed_, dtype_, (first + r) * spec_.shape.back() + column,
                      out.subspan(static_cast<std::size_t>(r) * width, width));
  }
  void read_scale_columns(std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                          std::span<std::byte>) override {
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

// A part of every matrix of a stack, as a tensor of its own. `whole_rows`: of one matrix of the source.
class PartOfMatrices final : public WeightSource {
 public:
  PartOfMatrices(TensorContent& whole, std::int64_t whole_rows, const TensorPart& part)
      : whole_(whole), whole_rows_(whole_rows), part_(part) {}
  void read(std::int64_t first, std::span<std::byte> rows) override {
    const std::size_t row = static_cast<std::size_t>(part_.columns) * size_of(whole_.dtype());
    for_runs(first, rows, row, [&](std::int64_t from, std::int64_t count, std::span<std::byte> to) {
      whole_.read_columns(from, count, part_.first_column, part_.columns, to);
    });
  }
  void read_scales(std::int64_t first, std::span<std::byte> scales) override {
    const auto row = static_cast<std::size_t>((part_.columns + kInt8Group - 1) / kInt8Group) * 2;
    for_runs(first, scales, row, [&](std::int64_t from, std::int64_t count, std::span<std::byte> to) {
      whole_.read_scale_columns(from, count, part_.first_column, part_.columns, to);
    });
  }

 private:
  // body(row of the source, rows, where to) for the rows of one matrix at a time.
  template <typename Body>
  void for_runs(std::int64_t first, std::span<std::byte> to, std::size_t row_bytes, const Body& body) {
    while (!to.empty()) {
      const std::int64_t matrix = first / part_.rows, row = first % part_.rows;
      const auto left = static_cast<std::int64_t>(to.size() / row_bytes);
      const std::int64_t count = std::min(left, part_.rows - row);
      const std::size_t bytes = static_cast<std::size_t>(count) * row_bytes;
      body(matrix * whole_rows_ + part_.first_row + row, count, to.first(bytes));
      to = to.subspan(bytes);
      first += count;
    }
  }

  TensorContent& whole_;
  std::int64_t whole_rows_;
  TensorPart part_;
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

  Weight load(const TensorSpec& spec) { return load({spec}, {spec}, {})[0]; }

  // All of them at once, so that threads need not wait for each other after each. `mine` are the same tensors
  // as this rank has them: whole, or a part.
  std::vector<Weight> load(const std::vector<TensorSpec>& specs, const std::vector<TensorSpec>& mine,
                           const TrackSplit& split) {
    std::vector<std::unique_ptr<TensorContent>> contents;
    std::vector<std::unique_ptr<PartOfMatrices>> parts;
    std::vector<WeightLoad> loads;
    for (std::size_t i = 0; i < specs.size(); ++i) {
      contents.push_back(source_.open(specs[i]));
      WeightSource* from = contents.back().get();
      if (specs[i].shape != mine[i].shape) {
        const std::int64_t rows = specs[i].weight(contents.back()->dtype()).out;
        from = parts
                   .emplace_back(std::make_unique<PartOfMatrices>(*contents.back(), rows,
                                                                  part_of(specs[i], mine[i], split)))
                   .get();
      }
      loads.push_back({mine[i].weight(contents.back()->dtype()), from});
    }
    std::vector<Weight> weights = backend_.load_weights(loads);
    for (std::size_t i = 0; i < specs.size(); ++i) {
      const bool whole = specs[i].shape == mine[i].shape;
      account(specs[i], *contents[i], whole ? contents[i]->verify() : contents[i]->claim());
    }
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

// Which part of the model a rank takes.
struct ShardPlan {
  const ModelConfig& config;
  ModelConfig mine;  // config_of_rank()
  std::int64_t first_track, tracks;
  HeadRows head;
  TrackSplit split;
};

template <typename Slots>
void load_group(const std::string& group, const std::vector<TensorSpec>& tensors,
                const std::vector<TensorSpec>& mine, const TrackSplit& split, Loader& loader, Slots& slots) {
  const std::vector<Weight> weights = loader.load(tensors, mine, split);
  for (std::size_t i = 0; i < tensors.size(); ++i)
    slot_of(slots, std::string_view(tensors[i].path).substr(group.size() + 1)).push_back(weights[i]);
}

void load_track(const ShardPlan& plan, std::int64_t track, Loader& loader, TrackShard& shard) {
  for (std::int64_t block = 0; block < plan.config.blocks(); ++block) {
    const auto tensors = block_tensors(plan.config, track, block);
    load_group(block_path(track, block), tensors, tensors, plan.split, loader,
               shard.blocks[static_cast<std::size_t>(block)]);
  }
  for (std::int64_t layer = 0; layer < plan.config.layers; ++layer)
    load_group(layer_path(track, layer), layer_tensors(plan.config, track, layer),
               layer_tensors(plan.mine, track, layer), plan.split, loader,
               shard.layers[static_cast<std::size_t>(layer)]);
  shard.track_digests.push_back(loader.take_digest());
}

// Types as stored, shapes as this rank has them.
std::vector<WeightSpec> planned_weights(const ShardPlan& plan, const TensorSource& source) {
  std::vector<WeightSpec> weights;
  const auto add = [&](const std::vector<TensorSpec>& tensors, const std::vector<TensorSpec>& mine) {
    for (std::size_t i = 0; i < tensors.size(); ++i)
      weights.push_back(mine[i].weight(source.dtype(tensors[i])));
  };
  add(shared_tensors(plan.config), shared_tensors(plan.config));
  for (std::int64_t track = plan.first_track; track < plan.first_track + plan.tracks; ++track)
    add(track_tensors(plan.config, track), track_tensors(plan.mine, track));
  return weights;
}

TrackShard load_from(const TensorSource& source, const ShardPlan& plan, Backend& backend) {
  const ModelConfig& config = plan.config;
  PTRT_CHECK(plan.first_track >= 0 && plan.tracks >= 1 && plan.first_track + plan.tracks <= config.tracks);
  backend.plan_weights(planned_weights(plan, source));
  Loader loader(source, backend);
  TrackShard shard;
  shard.first_track = plan.first_track;
  shard.tracks = plan.tracks;
  shard.head_rows = plan.head;
  shard.layers.resize(static_cast<std::size_t>(config.layers));
  shard.blocks.resize(static_cast<std::size_t>(config.blocks()));
  load_shared(config, loader, shard);
  for (std::int64_t track = plan.first_track; track < plan.first_track + plan.tracks; ++track)
    load_track(plan, track, loader, shard);
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
                      HeadRows head, TrackSplit split) {
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
  return load_from(source, {config, config_of_rank(config, split), first_track, tracks, head, split},
                   backend);
}

bool can_split_head(const ModelFile& file) {
  for (const TensorSpec& spec : shared_tensors(file.config()))
    if (const StoredTensor stored = file.stat(spec); is_head(spec))
      return stored.crc32c && (!stored.scales || stored.scales->crc32c);
  return false;
}

TrackShard random_shard(const ModelConfig& config, std::uint64_t seed, DType dtype, std::int64_t first_track,
                        std::int64_t tracks, Backend& backend, HeadRows head, TrackSplit split) {
  const TensorSource source{
      [&](const TensorSpec&) { return dtype; },
      [&](const TensorSpec& spec) { return std::make_unique<RandomTensor>(config, spec, seed, dtype); }};
  return load_from(source, {config, config_of_rank(config, split), first_track, tracks, head, split},
                   backend);
}

}  // namespace ptrt
