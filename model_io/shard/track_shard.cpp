#include "model_io/shard/track_shard.h"

#include <algorithm>
#include <array>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "model_io/shard/partial_source.h"
#include "model_io/shard/random_init.h"
#include "model_io/shard/shard_manifest.h"

namespace ptrt {
namespace {

constexpr std::array<std::pair<TensorId, TrackWeights LayerWeights::*>, 23> kLayerMembers{{
    {TensorId::attn_norm, &LayerWeights::attn_norm},
    {TensorId::attn_output_norm, &LayerWeights::attn_output_norm},
    {TensorId::attn_post_norm, &LayerWeights::attn_post_norm},
    {TensorId::ffn_norm, &LayerWeights::ffn_norm},
    {TensorId::ffn_output_norm, &LayerWeights::ffn_output_norm},
    {TensorId::ffn_post_norm, &LayerWeights::ffn_post_norm},
    {TensorId::wq, &LayerWeights::wq},
    {TensorId::wk, &LayerWeights::wk},
    {TensorId::wv, &LayerWeights::wv},
    {TensorId::wo, &LayerWeights::wo},
    {TensorId::bq, &LayerWeights::bq},
    {TensorId::bk, &LayerWeights::bk},
    {TensorId::bv, &LayerWeights::bv},
    {TensorId::bo, &LayerWeights::bo},
    {TensorId::q_norm, &LayerWeights::q_norm},
    {TensorId::k_norm, &LayerWeights::k_norm},
    {TensorId::w_gate, &LayerWeights::w_gate},
    {TensorId::w_up, &LayerWeights::w_up},
    {TensorId::w_down, &LayerWeights::w_down},
    {TensorId::router, &LayerWeights::router},
    {TensorId::expert_gate, &LayerWeights::expert_gate},
    {TensorId::expert_up, &LayerWeights::expert_up},
    {TensorId::expert_down, &LayerWeights::expert_down},
}};
constexpr std::array<std::pair<TensorId, TrackWeights BlockWeights::*>, 2> kBlockMembers{{
    {TensorId::dispatch_norm, &BlockWeights::dispatch_norm},
    {TensorId::combine_norm, &BlockWeights::combine_norm},
}};

template <typename Weights, typename Members>
TrackWeights& member_of(Weights& weights, const Members& members, TensorId id) {
  for (const auto& [member_id, member] : members)
    if (member_id == id) return weights.*member;
  throw_failure("internal error: no place for the tensor {}", static_cast<int>(id));
}

template <typename Weights, typename Members>
Weights entries_of(const Weights& weights, const Members& members, std::size_t track) {
  Weights part;
  for (const auto& [id, member] : members)
    if (const TrackWeights& all = weights.*member; !all.empty()) part.*member = {all[track]};
  return part;
}

// Loads the entries of a manifest into the backend, and records what they were.
class Loader {
 public:
  // Where `file` is null, weights are random.
  Loader(const ModelConfig& config, const ModelFile* file, std::uint64_t seed, Backend& backend)
      : config_(config), file_(file), seed_(seed), backend_(backend) {}

  void load(const std::vector<ShardEntry>& manifest, TrackShard& shard) { load(manifest, &shard.contents); }
  // Takes the same places in memory, whose content is there.
  void adopt(const std::vector<ShardEntry>& manifest) { load(manifest, nullptr); }

 private:
  // `contents` null: nothing is read.
  void load(const std::vector<ShardEntry>& manifest, std::vector<DatasetContent>* contents) {
    std::vector<WeightSpec> planned;
    for (const ShardEntry& entry : manifest) planned.push_back(entry.weight());
    backend_.plan_weights(planned);
    for (auto first = manifest.begin(); first != manifest.end();) {
      const auto last = std::find_if(first, manifest.end(),
                                     [&](const ShardEntry& entry) { return entry.group != first->group; });
      load_group({first, last}, contents);
      first = last;
    }
  }

  // All entries at once, so that threads need not wait for each other after each one.
  void load_group(std::span<const ShardEntry> entries, std::vector<DatasetContent>* contents) {
    std::vector<std::unique_ptr<VerifiedSource>> sources;
    std::vector<std::unique_ptr<PartialSource>> parts;
    std::vector<WeightLoad> loads;
    for (const ShardEntry& entry : entries) {
      WeightSource* source = sources.emplace_back(open(entry)).get();
      if (entry.part)
        source = parts
                     .emplace_back(std::make_unique<PartialSource>(
                         *sources.back(), entry.whole.weight(entry.stored.dtype), *entry.part))
                     .get();
      loads.push_back({entry.weight(), source});
    }
    const std::vector<Weight> weights = backend_.load_weights(loads);
    for (std::size_t i = 0; i < entries.size(); ++i) {
      *entries[i].slot = weights[i];
      if (contents == nullptr) continue;
      if (!entries[i].part) sources[i]->verify();
      record(entries[i], sources[i]->contents(), *contents);
    }
  }

  std::unique_ptr<VerifiedSource> open(const ShardEntry& entry) const {
    if (file_ != nullptr) return file_->open(entry.stored);
    return random_source(config_, entry.whole, seed_, entry.stored.dtype);
  }

  static void record(const ShardEntry& entry, const std::vector<ReadContent>& read,
                     std::vector<DatasetContent>& contents) {
    for (std::size_t i = 0; i < read.size(); ++i) {
      DatasetContent content = content_of(entry.owner, entry.tensor, i == 1, entry.stored, read[i].recorded);
      content.again = entry.again;
      content.crc = read[i].crc;
      content.bytes = read[i].bytes;
      content.total = read[i].total;
      if (entry.part && !read[i].in_memory) content.part = part_number(*entry.part);
      contents.push_back(content);
      if (!entry.part) continue;  // several pieces of one rank
      content.shared = 1;
      for (const auto& [place, crc] : read[i].shared) {
        content.part = place;
        content.crc = crc;
        contents.push_back(content);
      }
    }
  }

  const ModelConfig& config_;
  const ModelFile* file_;
  std::uint64_t seed_;
  Backend& backend_;
};

std::vector<ShardEntry> manifest_in(const ModelFile& file, const ShardPlan& plan, TrackShard& shard) {
  std::vector<ShardEntry> manifest = make_manifest(plan, shard);
  for (ShardEntry& entry : manifest) entry.stored = file.stat(entry.whole);
  return manifest;
}

// `lm_head` is the embedding itself where it is tied and whole.
void share_tied_head(const ModelConfig& config, TrackShard& shard) {
  if (config.tie_embeddings && shard.head_rows.count == 0) shard.lm_head = shard.embedding;
}

}  // namespace

TrackWeights& weights_of(LayerWeights& layer, TensorId id) {
  return member_of(layer, kLayerMembers, id);
}

TrackWeights& weights_of(BlockWeights& block, TensorId id) {
  return member_of(block, kBlockMembers, id);
}

LayerWeights of_track(const LayerWeights& layer, std::size_t track) {
  return entries_of(layer, kLayerMembers, track);
}

BlockWeights of_track(const BlockWeights& block, std::size_t track) {
  return entries_of(block, kBlockMembers, track);
}

bool is_head(const TensorSpec& spec) {
  return spec.id == TensorId::lm_head || spec.role == WeightRole::tied_embedding;
}

TrackShard load_shard(const ModelFile& file, std::int64_t first_track, std::int64_t tracks, Backend& backend,
                      HeadRows head, TrackSplit split) {
  TrackShard shard;
  Loader(file.config(), &file, 0, backend)
      .load(manifest_in(file, {file.config(), first_track, tracks, head, split}, shard), shard);
  share_tied_head(file.config(), shard);
  return shard;
}

TrackShard adopt_shard(const ModelFile& file, std::int64_t first_track, std::int64_t tracks, Backend& backend,
                       HeadRows head, TrackSplit split, std::vector<DatasetContent> contents) {
  TrackShard shard;
  Loader loader(file.config(), &file, 0, backend);
  loader.adopt(manifest_in(file, {file.config(), first_track, tracks, head, split}, shard));
  shard.contents = std::move(contents);
  share_tied_head(file.config(), shard);
  return shard;
}

TrackShard random_shard(const ModelConfig& config, std::uint64_t seed, DType dtype, std::int64_t first_track,
                        std::int64_t tracks, Backend& backend, HeadRows head, TrackSplit split) {
  TrackShard shard;
  std::vector<ShardEntry> manifest = make_manifest({config, first_track, tracks, head, split}, shard);
  for (ShardEntry& entry : manifest) entry.stored.dtype = dtype;
  Loader(config, nullptr, seed, backend).load(manifest, shard);
  share_tied_head(config, shard);
  return shard;
}

}  // namespace ptrt
