// The plan's arithmetic against sums done by hand and against what an engine takes.
#include "runtime/serving/memory_plan.h"

#include <gtest/gtest.h>

#include <functional>

#include "kernels/base/error.h"
#include "kernels/cuda/host/scratch_size.h"
#include "kernels/make_cpu_backend.h"
#include "runtime/comm/track_comm.h"
#include "runtime/job/placement.h"

namespace ptrt {
namespace {

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

ModelConfig small(const char* ffn_pattern) {
  return parse_config(std::string(R"({
  "name": "small", "tracks": 2, "layers": 2, "sync_layers": [2],
  "fusion": {"op": "mean", "dispatch_norm": false, "combine_norm": false},
  "hidden_size": 128, "heads": 4, "kv_heads": 2, "head_dim": 32, "ffn_size": 256,
  "vocab_size": 512, "max_context": 1024, "norm_eps": 1e-5, "norm_placement": ["pre"],
  "qk_norm": false, "attention_pattern": ["global_rope"], "attention_window": 0,
  "rope_theta": 500.0, "ffn_pattern": )") +
                          ffn_pattern + R"(,
  "moe": {"experts": 4, "top_k": 2, "ffn_size": 160, "router_logit_cap": null},
  "tie_embeddings": false, "bos_token_id": null, "eos_token_ids": []})",
                      "the test's configuration");
}

std::string message_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_input);
    return error.what();
  }
  return "";
}

const Placement kAlone = make_placement(1, 0, 2);

TEST(MemoryPlan, CountsWeightsAndPages) {
  const ModelConfig config = small(R"(["dense"])");
  const DeviceNeeds one = device_needs(config, make_placement(2, 1, 2), {.embedding = DType::float32}, 4, 8);
  const std::int64_t shared = 512 * 128 * 4 + 512 * 128 * 2 + 128 * 4;  // table as stored, head, norm
  const std::int64_t layer = 2 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 256 * 128) + 2 * 128 * 4;
  EXPECT_EQ(one.weights, shared + 2 * layer);
  EXPECT_EQ(one.kv_page, 16 * 2 * 2 * 2 * 32 * 2);  // tokens, layers, keys and values, heads, elements, bytes
  const DeviceNeeds both = device_needs(config, kAlone, {}, 4, 8);
  EXPECT_EQ(both.weights, shared - 512 * 128 * 2 + 4 * layer);
  EXPECT_EQ(both.kv_page, 2 * one.kv_page);
}

TEST(MemoryPlan, Float16OnlyWhereEveryMatrixIs) {
  EXPECT_EQ(activation_dtype_on_device(DType::float16), DType::float16);
  for (const std::optional<DType> other :
       {std::optional<DType>(), {DType::float32}, {DType::bfloat16}, {DType::int8}, {DType::float8_e4m3}})
    EXPECT_EQ(activation_dtype_on_device(other), DType::bfloat16);
}

// wq of the first layer, 128 x 128: a byte a weight; int8's scales in blocks of 8 rows and 128 inputs, float8's one a
// row. The memory for widened weights is counted once.
TEST(MemoryPlan, CountsMatricesOf8Bits) {
  const ModelConfig config = small(R"(["dense"])");
  const DeviceNeeds plain = device_needs(config, kAlone, {}, 4, 8);
  for (const auto& [stored, scales] : {std::pair{DType::int8, 16 * 64}, {DType::float8_e4m3, 128 * 4}}) {
    DeviceTypes types;
    for (const TensorSpec& spec : track_tensors(config, 1))
      if (spec.id == TensorId::wq) {
        types.note(spec, stored);
        EXPECT_EQ(types.of_matrix(spec), stored);
      }
    EXPECT_EQ(types.narrow.size(), 2u);
    const DeviceNeeds narrow = device_needs(config, kAlone, types, 4, 8);
    EXPECT_EQ(plain.weights - narrow.weights, 2 * (128 * 128 - scales)) << to_string(stored);
    EXPECT_EQ(narrow.scratch - plain.scratch, 32 << 20) << to_string(stored);
  }
  DeviceTypes types;
  for (const TensorSpec& spec : shared_tensors(config)) types.note(spec, DType::float16);
  EXPECT_TRUE(types.narrow.empty());
  EXPECT_EQ(types.embedding, DType::float16);
}

TEST(MemoryPlan, CountsBiases) {
  const auto weights = [](const AttentionBias& bias) {
    ModelConfig config = small(R"(["dense"])");
    config.attention_bias = bias;
    return device_needs(config, make_placement(2, 0, 2), {}, 4, 8).weights;
  };
  EXPECT_EQ(weights({.q = true, .o = true}) - weights({}), 2 * 2 * 128 * 4);
  EXPECT_EQ(weights({.k = true, .v = true}) - weights({}), 2 * 2 * 64 * 4);
}

ModelConfig with_two_thetas(ModelConfig config) {
  config.attention_pattern = {AttentionKind::local_rope, AttentionKind::global_rope};
  config.attention_window = 9;
  config.rope_theta_local = 30;
  return config;
}

// Activations as the engine counts them, whatever the kinds of its layers.
TEST(MemoryPlan, ActivationsAreWhatAnEngineTakes) {
  for (const ModelConfig& config : {small(R"(["dense"])"), small(R"(["moe"])"), small(R"(["dense", "moe"])"),
                                    with_two_thetas(small(R"(["dense"])"))}) {
    const auto backend = make_cpu_backend({.threads = 1});
    const TrackShard shard = random_shard(config, 1, DType::bfloat16, 0, 2, *backend);
    const auto comm = make_solo_track_comm();
    EngineOptions options;
    options.max_batch = 4;
    options.max_rows = 24;
    options.kv_pages = 8;
    const Engine engine(config, config, shard, *backend, {*comm, *comm}, make_placement(1, 0, 2), nullptr,
                        options);
    EXPECT_EQ(
        engine.scratch_bytes(),
        activation_bytes(config, 2, 24, work_limits(config, 2, options).logit_rows, DType::float32, false))
        << to_json(config);
  }
}

TEST(MemoryPlan, ScratchGrowsWithBatchAndRows) {
  const ModelConfig config = small(R"(["dense"])");
  const std::int64_t few = device_needs(config, kAlone, {}, 4, 64).scratch;
  EXPECT_GT(device_needs(config, kAlone, {}, 64, 64).scratch, few);
  EXPECT_GT(device_needs(config, kAlone, {}, 4, 512).scratch, few);
  // Splits of decode attention: 1024 tokens are up to 4, of head_dim + 2 floats each, 256 are one.
  WorkLimits limits;
  limits.tracks = 2, limits.sequences = 8, limits.heads = 4, limits.head_dim = 30, limits.context = 1024;
  const std::size_t long_context = cuda_scratch_bytes(limits);
  limits.context = 256;
  EXPECT_GT(long_context, cuda_scratch_bytes(limits) + 2 * 8 * 4 * 4 * 32 * sizeof(float) - 1);
}

// Buffers of sums, and NCCL's own memory for each group of ranks, before the KV cache takes what is left.
TEST(MemoryPlan, CountsSumsBetweenRanks) {
  const ModelConfig config = small(R"(["dense"])");
  constexpr std::int64_t kRows = 512, kPart = kRows * 128 * 4;
  const auto sums = [&](int ranks, std::int64_t tensor_parallel, const DeviceSums& how) {
    const Placement placement = make_placement(ranks, 0, 2, {.tensor_parallel = tensor_parallel});
    return device_needs(config, placement, {}, 4, kRows, how).sums;
  };
  EXPECT_EQ(sums(1, 1, {}), 0);
  EXPECT_EQ(sums(2, 1, {DeviceFusion::tree}), (1 + 2) * kPart + kNcclBytes);
  EXPECT_EQ(sums(2, 1, {DeviceFusion::nccl}), (1 + 1) * kPart + kNcclBytes);
  EXPECT_EQ(sums(2, 1, {DeviceFusion::tree, true}), (1 + 2) * kPart) << "emulated";
  EXPECT_EQ(sums(2, 1, {DeviceFusion::staged}), kPart);
  EXPECT_EQ(sums(4, 2, {DeviceFusion::tree}), 2 * ((1 + 2) * kPart + kNcclBytes))
      << "tracks and parts of them";
  EXPECT_EQ(sums(2, 2, {DeviceFusion::tree}), 2 * (1 + 2) * kPart + kNcclBytes) << "parts of two tracks";
  const HeadRows half = head_rows_of(config.vocab_size, 2, 0);
  const std::int64_t logit = 64 * half.count * 4;  // float32, of the rows that a step has logits of
  EXPECT_EQ(sums(2, 1, {DeviceFusion::tree, true, half}), (1 + 2) * (kPart + logit))
      << "parts of the logits too";
  const auto weights = [&](const ModelConfig& model, const HeadRows& rows) {
    return device_needs(model, make_placement(2, 0, 2), {}, 4, kRows, {.head_rows = rows}).weights;
  };
  const std::int64_t rows_bytes = half.count * config.hidden_size * 2;
  EXPECT_EQ(weights(config, {}) - weights(config, half), rows_bytes) << "half of the head";
  ModelConfig tied = config;
  tied.tie_embeddings = true;
  EXPECT_EQ(weights(tied, half) - weights(tied, {}), rows_bytes) << "beside the table";
  // Parts of a track are float32 until they are added.
  const auto scratch = [&](std::int64_t tensor_parallel) {
    return device_needs(config, make_placement(2, 0, 2, {.tensor_parallel = tensor_parallel}), {}, 4, kRows)
        .scratch;
  };
  EXPECT_GE(scratch(2) - 2 * kPart / 2, scratch(1));

  const DeviceNeeds needs{.weights = kGiB, .scratch = kGiB, .kv_page = 1 << 20, .sums = 2 * kGiB};
  const DevicePlan plan = plan_device_memory(needs, 10 * kGiB, 1, {});
  EXPECT_EQ(plan.kv, 6 * kGiB - kDeviceReserveBytes);
  EXPECT_NE(plan.describe().find(", sums between ranks 2.0 GiB,"), std::string::npos) << plan.describe();
  EXPECT_NE(message_of([&] { plan_device_memory(needs, 10 * kGiB, 1, 6 * kGiB); }).find("ranks 2.0 GiB"),
            std::string::npos);
}

// What decode attention launches never needs more than the plan counts with.
TEST(MemoryPlan, SplitsFitTheirMemory) {
  WorkLimits limits;
  limits.heads = 8;
  for (const std::int64_t context : {100, 256, 257, 600, 2048, 5000, 100000})
    for (const std::int64_t sequences : {1, 3, 64, 500})
      for (const std::int64_t kv_heads : {1, 2, 8})
        for (const std::int64_t window : {0, 1, 256, 257, 258, 4000}) {
          limits.context = context, limits.sequences = sequences;
          for (std::int64_t rows = 1; rows <= sequences; rows *= 2) {
            const bool has_clusters = context % 2 == 0;
            const Splits splits = decode_splits(rows * kv_heads, context, window, has_clusters);
            ASSERT_TRUE(splits.cluster == 1 || has_clusters);
            // Wherever a row is, its window touches no more splits.
            for (std::int64_t last = 0; last < context; last += last < 3000 ? 1 : 997) {
              const std::int64_t first = window > 0 ? std::max<std::int64_t>(0, last - window + 1) : 0;
              ASSERT_LE(last / splits.tokens - first / splits.tokens + 1, splits.count);
            }
            if (splits.count == 1) continue;
            ASSERT_LE(rows * limits.heads * splits.count, most_head_splits(limits))
                << context << ' ' << sequences << ' ' << kv_heads << ' ' << window << ' ' << rows;
          }
        }
}

// Clusters share a split where blocks of 256 tokens would leave most of the device idle.
TEST(MemoryPlan, FewLongContextsAreSplitOverClusters) {
  const auto splits = [](std::int64_t units, std::int64_t context, std::int64_t window = 0) {
    const Splits found = decode_splits(units, context, window, true);
    return std::vector{found.tokens, found.count, found.cluster};
  };
  using Is = std::vector<std::int64_t>;
  EXPECT_EQ(splits(1, 512), (Is{256, 2, 1})) << "short";
  EXPECT_EQ(splits(1, 1024), (Is{512, 2, 8}));
  EXPECT_EQ(splits(1, 4096), (Is{512, 8, 8})) << "64 blocks instead of 16";
  EXPECT_EQ(splits(4, 4096), (Is{512, 8, 8})) << "256 blocks";
  EXPECT_EQ(splits(5, 4096), (Is{256, 16, 1}));
  EXPECT_EQ(splits(1, 4096, 512), (Is{256, 3, 1})) << "the window is short";
  EXPECT_EQ(splits(1, 1 << 17, 1024), (Is{512, 3, 8}));
  EXPECT_EQ(decode_splits(1, 4096, 0, false).cluster, 1) << "before sm_90";
}

TEST(MemoryPlan, TheCacheTakesWhatIsLeft) {
  const DeviceNeeds needs{16 * kGiB, kGiB, 1 << 20};
  const DevicePlan plan = plan_device_memory(needs, 80 * kGiB, 0.5, {});
  EXPECT_EQ(plan.kv, 40 * kGiB - 16 * kGiB - kGiB - kDeviceReserveBytes);
  EXPECT_NE(plan.describe().find("KV up to 22.5 GiB"), std::string::npos) << plan.describe();
  EXPECT_EQ(plan_device_memory(needs, 80 * kGiB, 0.5, 60 * kGiB).kv,
            60 * kGiB);  // asked for: all may be used
}

TEST(MemoryPlan, RefusesWhatDoesNotFit) {
  const DeviceNeeds needs{16 * kGiB, kGiB, 1 << 20};
  EXPECT_EQ(message_of([&] { plan_device_memory(needs, 12 * kGiB, 0.9, {}); }),
            "the weights of this rank take 16.0 GiB, the device has 12.0 GiB free");
  EXPECT_NE(message_of([&] { plan_device_memory(needs, 17 * kGiB, 0.9, {}); }).find("no room for a KV page"),
            std::string::npos);
  EXPECT_NE(message_of([&] { plan_device_memory(needs, 24 * kGiB, 0.9, 8 * kGiB); }).find("--kv-cache-bytes"),
            std::string::npos);
}

TEST(MemoryPlan, AQuarterOfTheHost) {
  const HostNeeds needs{.weights = 20 * kGiB, .scratch = kGiB, .kv_page = 1 << 20};
  const HostPlan plan = plan_host_memory(needs, {.bytes = 64 * kGiB}, 8);
  EXPECT_EQ(plan.kv, 16 * kGiB);
  EXPECT_EQ(plan.limited_by, "");
  EXPECT_EQ(plan_host_memory(needs, {.bytes = 32 * kGiB, .source = "a cgroup"}, 8).limited_by, "a cgroup");
}

TEST(MemoryPlan, NoMoreThanTheHostsWeightsLeave) {
  const HostNeeds needs{.weights = 20 * kGiB, .mapped = 40 * kGiB, .scratch = kGiB, .kv_page = 1 << 20};
  const std::int64_t left = 3 * kGiB - kHostReserveBytes;
  EXPECT_EQ(plan_host_memory(needs, {.bytes = 24 * kGiB, .source = "a cgroup"}, 8).kv, left);
  const HostPlan plan =
      plan_host_memory(needs, {.bytes = 64 * kGiB, .source = "ulimit -v", .counts_mapped_files = true}, 8);
  EXPECT_EQ(plan.kv, left) << "mapped files count";
  EXPECT_EQ(plan.limited_by, "ulimit -v");
  EXPECT_EQ(
      message_of([&] { plan_host_memory(needs, {.bytes = 21 * kGiB, .source = "a cgroup"}, 8); }),
      "not enough memory: a cgroup leaves this rank 21.0 GiB; its weights take 20.0 GiB, scratch 1.0 GiB "
      "(--kv-cache-bytes skips this check)");
  EXPECT_EQ(plan_host_memory(needs, {.bytes = 21 * kGiB}, 8).kv, 8 << 20) << "a sequence";
  EXPECT_EQ(plan_host_memory(needs, {.bytes = 18 * kGiB, .swap_bytes = 3 * kGiB}, 8).kv, 8 << 20);
  EXPECT_NE(message_of([&] {
              plan_host_memory(needs, {.bytes = 18 * kGiB, .swap_bytes = 2 * kGiB}, 8);
            }).find("the host leaves this rank 20.0 GiB"),
            std::string::npos);
}

}  // namespace
}  // namespace ptrt
