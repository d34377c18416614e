// Whole models over ranks that are threads, each with an emulated device, against one rank.
#include <gtest/gtest.h>

#include <cmath>
#include <mutex>
#include <optional>

#include "cuda_emulation/stream.h"
#include "kernels/cuda/cuda_backend.h"
#include "model_io/file/model_file.h"
#include "model_io/shard/track_shard.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"
#include "ops/fixtures/test_tensors.h"
#include "runtime/comm/emulated_comm.h"
#include "runtime/model/vocab_head.h"
#include "runtime/serving/engine.h"
#include "thread_comm.h"

#ifndef PTRT_DEMO_MODEL
#error "PTRT_DEMO_MODEL comes from CMake"
#endif

namespace ptrt::testing {
namespace {

struct Layout {
  int ranks = 1, tensor_parallel = 1;
  DeviceFusion fusion = DeviceFusion::tree;
  bool on_cuda = true;
  DType activation_dtype = DType::bfloat16;  // on CUDA
  bool split_head = false;
};

// A model to run: how a rank gets its weights, and the requests.
struct Job {
  ModelConfig config;
  std::function<TrackShard(const Placement&, const TrackSplit&, HeadRows, Backend&)> load;
  Task task = Task::score;
  std::vector<Request> requests;
  const Tokenizer* tokenizer = nullptr;
};

struct Outcome {
  std::vector<Completion> completions;
  RunCounters counters;
  std::uint64_t kernels = 0;    // launched by the run
  std::uint64_t late_sums = 0;  // of the tree, that did not trigger their successors early
};

// Groups of threads, as the ranks form groups.
class Groups {
 public:
  explicit Groups(const Placement& any) : replica_(static_cast<int>(any.replica_ranks)) {
    for (std::int64_t i = 0; i < any.tensor_parallel; i++)
      fusion_.push_back(std::make_unique<ThreadCommGroup>(static_cast<int>(any.fusion_ranks())));
    for (std::int64_t i = 0; i < any.fusion_ranks(); i++)
      track_.push_back(std::make_unique<ThreadCommGroup>(static_cast<int>(any.tensor_parallel)));
  }
  std::unique_ptr<TrackComm> replica(const Placement& p) {
    return replica_.comm(static_cast<int>(p.replica_rank));
  }
  std::unique_ptr<TrackComm> fusion(const Placement& p) {
    return fusion_[static_cast<std::size_t>(p.tensor_rank)]->comm(static_cast<int>(p.fusion_rank()));
  }
  std::unique_ptr<TrackComm> track(const Placement& p) {
    if (p.tensor_parallel == 1) return nullptr;
    return track_[static_cast<std::size_t>(p.fusion_rank())]->comm(static_cast<int>(p.tensor_rank));
  }

 private:
  ThreadCommGroup replica_;
  std::vector<std::unique_ptr<ThreadCommGroup>> fusion_, track_;
};

Outcome run_rank(const Job& job, const Layout& layout, const Placement& placement, Groups& groups) {
  static std::mutex one_reader;  // the HDF5 library takes one thread at a time
  std::unique_ptr<Backend> backend =
      layout.on_cuda ? std::make_unique<CudaBackend>("host emulation", true, layout.activation_dtype)
                     : make_cpu_backend({.threads = 1});
  const TrackSplit split{placement.tensor_parallel, placement.tensor_rank};
  const HeadRows head =
      layout.split_head ? head_rows_of(job.config.vocab_size, placement.replica_ranks, placement.replica_rank)
                        : HeadRows{};
  TrackShard shard;
  {
    const std::lock_guard lock(one_reader);
    shard = job.load(placement, split, head, *backend);
  }
  const auto replica = groups.replica(placement), fusion = groups.fusion(placement),
             track = groups.track(placement);
  const ModelConfig mine = config_of_rank(job.config, split);
  Engine engine(job.config, mine, shard, *backend,
                {*replica, *fusion, track.get(), {.device_fusion = layout.fusion}}, placement, job.tokenizer,
                {.max_batch = 4,
                 .max_rows = 20,
                 .kv_pages = 32,
                 .kv_dtype = layout.on_cuda ? layout.activation_dtype : DType::float32});
  std::vector<std::int64_t> order(job.requests.size());
  for (std::size_t i = 0; i < order.size(); i++) order[i] = static_cast<std::int64_t>(i);
  Outcome outcome;
  outcome.completions.resize(job.requests.size());
  Engine::Hooks hooks;
  hooks.completed = [&](Completion&& done) {
    outcome.completions[static_cast<std::size_t>(done.request)] = std::move(done);
  };
  const std::uint64_t kernels_before = emulation::kernel_launches();
  const std::uint64_t late_before = emulation::late_kernels("tree_sum");
  EXPECT_TRUE(engine.run(job.task, job.requests, order, hooks));
  outcome.late_sums = emulation::late_kernels("tree_sum") - late_before;
  outcome.kernels = emulation::kernel_launches() - kernels_before;
  outcome.counters = engine.counters();
  return outcome;
}

// Rank 0's outcome; expects the same of the others.
Outcome run_over(const Job& job, const Layout& layout) {
  const PlacementOptions options{0, layout.tensor_parallel};
  const auto placement = [&](int rank) {
    return make_placement(layout.ranks, rank, job.config.tracks, options);
  };
  Groups groups(placement(0));
  std::vector<Outcome> outcomes(static_cast<std::size_t>(layout.ranks));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < layout.ranks; rank++)
    threads.emplace_back([&, rank] {
      outcomes[static_cast<std::size_t>(rank)] = run_rank(job, layout, placement(rank), groups);
    });
  for (std::thread& thread : threads) thread.join();
  for (const Outcome& other : outcomes)
    for (std::size_t i = 0; i < job.requests.size(); i++)
      EXPECT_EQ(other.completions[i].tokens, outcomes[0].completions[i].tokens);
  return std::move(outcomes[0]);
}

void expect_same_bits(const Outcome& a, const Outcome& b, const char* what) {
  for (std::size_t i = 0; i < b.completions.size(); i++) {
    EXPECT_EQ(a.completions[i].tokens, b.completions[i].tokens) << what;
    EXPECT_EQ(a.completions[i].logprobs, b.completions[i].logprobs) << what;
  }
}

// Mean distance of the log-probabilities.
double distance(const Outcome& a, const Outcome& b) {
  double sum = 0, count = 0;
  for (std::size_t i = 0; i < b.completions.size(); i++) {
    const auto &x = a.completions[i].logprobs, &y = b.completions[i].logprobs;
    EXPECT_EQ(x.size(), y.size());
    for (std::size_t p = 0; p < std::min(x.size(), y.size()); p++, count++)
      sum += std::abs(double{x[p]} - double{y[p]});
  }
  return sum / std::max(count, 1.0);
}

TEST(CudaRanks, DemoModelHasTheSameBitsOverTwoAndEightRanks) {
  const ModelFile file(PTRT_DEMO_MODEL);
  const TokenizerChoice tokenizer = make_tokenizer(file.tokenizer(), file.config());
  Job job;
  job.config = file.config();
  job.tokenizer = tokenizer.tokenizer.get();
  job.task = Task::generate;
  job.load = [&](const Placement& p, const TrackSplit& split, HeadRows head, Backend& backend) {
    return load_shard(file, p.first_track, p.tracks, backend, head, split);
  };
  Request request;
  request.tokens = tokenizer.tokenizer->encode("Add 36 and 72.\n");
  if (job.config.bos_token_id)
    request.tokens.insert(request.tokens.begin(), static_cast<std::int32_t>(*job.config.bos_token_id));
  request.max_tokens = 4;
  request.logprobs = true;
  job.requests = {request};

  const Outcome alone = run_over(job, {.ranks = 1});
  EXPECT_EQ(alone.completions[0].text.substr(0, 3), "108");
  const Outcome two = run_over(job, {.ranks = 2}), eight = run_over(job, {.ranks = 8});
  expect_same_bits(two, alone, "2 ranks");
  expect_same_bits(eight, alone, "8 ranks");
  EXPECT_EQ(eight.counters.fusions, alone.counters.fusions);
  EXPECT_GT(eight.counters.sync_bytes, two.counters.sync_bytes);
  EXPECT_GT(eight.counters.sync_s, 0);
  EXPECT_FALSE(eight.counters.sync_wait_known);
}

// Every kind of layer and norm.
Job small_job(Task task) {
  Job job;
  job.config = parse_config(R"({
  "name": "small", "tracks": 4, "layers": 2, "sync_layers": [1, 2],
  "fusion": {"op": "delta_sum", "dispatch_norm": true, "combine_norm": true},
  "hidden_size": 24, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn_size": 20,
  "vocab_size": 67, "max_context": 64, "norm_eps": 1e-5, "norm_placement": ["pre", "output", "post"],
  "qk_norm": true, "attention_pattern": ["global_rope", "local_nope"], "attention_window": 5,
  "rope_theta": 500.0, "ffn_pattern": ["dense", "moe"],
  "moe": {"experts": 4, "top_k": 2, "ffn_size": 12, "router_logit_cap": 20.0},
  "tie_embeddings": false, "bos_token_id": null, "eos_token_ids": []})",
                            "the test's configuration");
  job.load = [config = job.config](const Placement& p, const TrackSplit& split, HeadRows head,
                                   Backend& backend) {
    return random_shard(config, 5, DType::bfloat16, p.first_track, p.tracks, backend, head, split);
  };
  job.task = task;
  Random random(3);
  for (int i = 0; i < 2; i++) {
    Request request;
    for (int n = 0; n < 7 + 12 * i; n++) request.tokens.push_back(random.below(67));
    request.max_tokens = 3;
    request.logprobs = true;
    request.temperature = i == 0 ? 0.0f : 0.8f;
    job.requests.push_back(request);
  }
  return job;
}

// Every rank multiplies its part of the head and gathers the others' logits on its device.
TEST(CudaRanks, SplitHeadsHaveTheSameBits) {
  Job job = small_job(Task::generate);
  for (Request& request : job.requests) request.max_tokens = 9;  // among them steps that are replayed
  const Outcome alone = run_over(job, {.ranks = 1});
  for (const int ranks : {2, 4}) {
    const Outcome split = run_over(job, {.ranks = ranks, .split_head = true});
    expect_same_bits(split, alone, "a split head");
    EXPECT_GT(split.counters.head_exchanges, 9u);
    EXPECT_GT(split.counters.head_s, 0);
    EXPECT_EQ(run_over(job, {.ranks = ranks}).counters.head_exchanges, 0u);
  }
  const Job texts = small_job(Task::score);
  expect_same_bits(run_over(texts, {.ranks = 4, .split_head = true}), run_over(texts, {}), "scores");
}

TEST(CudaRanks, EveryFusionOverTheHostsAndTheDevices) {
  const Job job = small_job(Task::generate);
  const Outcome alone = run_over(job, {.ranks = 1});
  expect_same_bits(run_over(job, {.ranks = 4, .fusion = DeviceFusion::staged}), alone, "staged");
  expect_same_bits(run_over(job, {.ranks = 2, .fusion = DeviceFusion::automatic}), alone, "automatic");
  const Job texts = small_job(Task::score);
  EXPECT_LT(distance(run_over(texts, {.ranks = 4, .fusion = DeviceFusion::nccl}), run_over(texts, {})), 1e-2);
}

// One step of two layers, with a sync between them and without: the kernels that the sync adds to
// its collective.
TEST(CudaRanks, OneKernelMoreForASync) {
  for (const bool norms : {false, true})
    for (const FusionOp op : {FusionOp::mean, FusionOp::delta_sum}) {
      Job job = small_job(Task::score);
      job.requests.resize(1);
      job.config.fusion = {op, norms, norms};
      job.config.norm_placement = {.pre = true, .output = false, .post = false};
      job.load = [config = &job.config](const Placement& p, const TrackSplit& split, HeadRows head,
                                        Backend& backend) {
        return random_shard(*config, 5, DType::bfloat16, p.first_track, p.tracks, backend, head, split);
      };
      const Outcome two_syncs = run_over(job, {.ranks = 4});
      job.config.sync_layers = {2};
      const Outcome one_sync = run_over(job, {.ranks = 4});
      EXPECT_EQ(two_syncs.counters.fusions, 2u);
      EXPECT_EQ(two_syncs.kernels, one_sync.kernels + 1) << "norms " << norms;
    }
}

// Three of four ranks are absent and every collective takes a millisecond, also in replayed steps,
// of which the host runs nothing.
TEST(CudaRanks, TimeInSyncIsKnownInsideReplays) {
  constexpr double kLatency_s = 1e-3;
  constexpr LinkModel kLink{.latency_us = 1e6 * kLatency_s, .gb_per_s = 1000};
  Job job = small_job(Task::generate);
  job.requests.resize(1);
  job.requests[0].max_tokens = 14;
  CudaBackend backend("host emulation");
  const Placement placement = make_placement(4, 0, job.config.tracks, {});
  const HeadRows head = head_rows_of(job.config.vocab_size, 4, 0);
  TrackShard shard = job.load(placement, {}, head, backend);
  const auto comm = make_emulated_comm(4, {.latency_us = 0, .gb_per_s = 1000});
  Engine engine(job.config, job.config, shard, backend,
                {*comm, *comm, nullptr, {.device_fusion = DeviceFusion::tree, .emulated = kLink}}, placement,
                nullptr, {.max_batch = 4, .max_rows = 20, .kv_pages = 32, .kv_dtype = DType::bfloat16});
  const std::int64_t order[] = {0};
  const std::uint64_t replays_before = emulation::graph_launches();
  for (int run = 0; run < 2; run++) {
    EXPECT_TRUE(engine.run(job.task, job.requests, order, {}));
    const RunCounters& c = engine.counters();
    EXPECT_EQ(c.fusions, 2 * c.steps);
    EXPECT_GE(c.sync_s, kLatency_s * static_cast<double>(c.fusions) - 1e-5);
    EXPECT_EQ(c.head_exchanges, c.steps);
    EXPECT_EQ(c.head_bytes % (3u * 17 * sizeof(float)), 0u) << "to three ranks, 17 of 67 logits a row";
    EXPECT_GE(c.head_bytes, c.steps * 3u * 17 * sizeof(float));
    EXPECT_GE(c.head_s, kLatency_s * static_cast<double>(c.steps) - 1e-5);
    EXPECT_LT(c.sync_s, c.elapsed_s);
    // Not counted of the 13 decode steps: in the first run one that ran and two that were recorded;
    // in the second run the first, which follows a prefill.
    const double steps = run == 0 ? 10 : 12;
    EXPECT_GE(c.replay_busy_s, 3 * kLatency_s * steps - 1e-5);
    EXPECT_LT(c.replay_busy_s + c.replay_idle_s, c.elapsed_s);
    EXPECT_GT(c.replay_idle_s, 0);
  }
  EXPECT_EQ(emulation::graph_launches() - replays_before, 12u + 13u);
}

// Two ranks share each track: all-reduces after wo and after w_down, over the devices too.
TEST(CudaRanks, TensorParallel) {
  const Job job = small_job(Task::score);
  const Outcome on_cpu = run_over(job, {.ranks = 1, .on_cuda = false});
  const Outcome packed = run_over(job, {.ranks = 2, .tensor_parallel = 2});
  EXPECT_LT(distance(packed, on_cpu), 3e-2);
  const Outcome float16 =
      run_over(job, {.ranks = 4, .tensor_parallel = 2, .activation_dtype = DType::float16});
  EXPECT_LT(distance(float16, on_cpu), 3e-3);
  const std::uint64_t forwards = packed.counters.steps;
  EXPECT_EQ(packed.counters.track_sums, forwards * 2 * 2);
  EXPECT_EQ(packed.counters.fusions, forwards * 2);
  EXPECT_EQ(packed.late_sums, 0u) << "no collective reads their output, and the norm behind may begin early";
  expect_same_bits(run_over(job, {.ranks = 4, .tensor_parallel = 2}), packed, "two tracks a rank");
  expect_same_bits(run_over(job, {.ranks = 8, .tensor_parallel = 2, .fusion = DeviceFusion::staged}), packed,
                   "staged");
}

// A bias of q, k and v is divided like their rows; that of o is added by one rank of a track alone.
TEST(CudaRanks, TensorParallelWithConfigKeys) {
  Job job = small_job(Task::score);
  job.config.attention_bias = {.q = true, .k = true, .v = true, .o = true};
  job.config.pre_scale_norms = {.output = true, .post = true};
  job.config.qk_norm_order = QkNormOrder::after_rope;
  job.config.ffn_activation = FfnActivation::gelu_tanh;
  job.config.moe->normalize_top_k = false;
  job.load = [&job](const Placement& p, const TrackSplit& split, HeadRows head, Backend& backend) {
    return random_shard(job.config, 5, DType::bfloat16, p.first_track, p.tracks, backend, head, split);
  };
  const Outcome on_cpu = run_over(job, {.ranks = 1, .on_cuda = false});
  for (const int ranks : {1, 4}) {
    const Outcome on_cuda = run_over(
        job, {.ranks = ranks, .tensor_parallel = ranks == 1 ? 1 : 2, .activation_dtype = DType::float16});
    EXPECT_LT(distance(on_cuda, on_cpu), 3e-3) << ranks << " ranks";
  }
  job.config.attention_bias.o = false;
  EXPECT_GT(distance(run_over(job, {.ranks = 1, .on_cuda = false}), on_cpu), 3e-2);
}

}  // namespace
}  // namespace ptrt::testing
