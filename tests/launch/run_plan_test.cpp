#include "launch/session/run_plan.h"

#include <gtest/gtest.h>

#include "kernels/base/error.h"
#include "kernels/make_cpu_backend.h"

namespace ptrt {
namespace {

ModelSource random_model() {
  ModelSource model;
  model.config = parse_config(R"({"name": "small", "tracks": 2, "layers": 2, "sync_layers": [1, 2],
      "fusion": {"op": "mean", "dispatch_norm": false, "combine_norm": false},
      "hidden_size": 64, "heads": 2, "kv_heads": 2, "head_dim": 32, "ffn_size": 64,
      "vocab_size": 259, "max_context": 64, "norm_eps": 1e-5, "norm_placement": ["pre"], "qk_norm": false,
      "attention_pattern": ["global_rope"], "attention_window": 0, "rope_theta": 10000.0,
      "ffn_pattern": ["dense"], "moe": null,
      "tie_embeddings": true, "bos_token_id": null, "eos_token_ids": []})",
                              "small.json");
  return model;
}

class RunPlanTest : public ::testing::Test {
 protected:
  RunPlanTest() { options_.device = Device::cpu; }
  RunPlan plan() { return agree_on_run(*job_, options_, model_).plan; }
  void expect_refused(const char* words) {
    try {
      plan();
      ADD_FAILURE() << "no error: " << words;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_input);
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
  }

  std::unique_ptr<JobComm> job_ = make_solo_job_comm();
  ModelSource model_ = random_model();  // of bfloat16 weights
  ModelRunOptions options_;
};

TEST_F(RunPlanTest, TypesFollowTheWeightsAndTheProcessor) {
  const RunPlan automatic = plan();
  const bool rounds = cpu_computes(Compute::bfloat16);
  EXPECT_EQ(automatic.device, Device::cpu);
  EXPECT_EQ(automatic.compute, rounds ? Compute::bfloat16 : Compute::float32);
  EXPECT_EQ(automatic.kv_dtype, rounds ? DType::bfloat16 : DType::float32);
  EXPECT_EQ(automatic.product_type(), to_string(automatic.compute));
  options_.compute = Compute::float32;
  EXPECT_EQ(plan().compute, Compute::float32);
  EXPECT_EQ(plan().kv_dtype, DType::float32);
  options_.kv_dtype = DType::bfloat16;
  EXPECT_EQ(plan().kv_dtype, DType::bfloat16);
}

TEST_F(RunPlanTest, PagesForTheBatchWithinTheBudget) {
  options_.compute = Compute::float32;
  options_.max_batch = 3;
  EXPECT_EQ(plan().kv_pages, 3 * 64 / kPageTokens);
  const std::int64_t page = kPageTokens * 2 * 2 * 2 * 2 * 32 * 4;  // tracks, layers, keys and values, heads
  options_.kv_cache_bytes = 2 * page + 1;
  EXPECT_EQ(plan().kv_pages, 2);
  options_.kv_cache_bytes = page - 1;
  expect_refused("--kv-cache-bytes");
}

TEST_F(RunPlanTest, EmulatedRanksGetTheFirstShare) {
  options_.emulated = EmulatedRanks{2, {.latency_us = 1, .gb_per_s = 1}};
  options_.vocab_head = VocabHeadMode::split;
  const RunPlan split = plan();
  EXPECT_EQ(split.placement.world_size, 2);
  EXPECT_EQ(split.placement.tracks, 1);
  EXPECT_EQ(split.head_rows.first, 0);
  EXPECT_GE(split.head_rows.count, 130);  // half of 259, or more
  EXPECT_LT(split.head_rows.count, 259);
  options_.vocab_head = VocabHeadMode::whole;
  EXPECT_EQ(plan().head_rows.count, 0);
  options_.emulated->ranks = 4;
  expect_refused("--emulate-ranks 4");
}

TEST_F(RunPlanTest, OptionsOfGpusAreRefusedOnTheCpu) {
  options_.fusion = DeviceFusion::tree;
  expect_refused("--fusion tree");
  options_.fusion = DeviceFusion::automatic;
  options_.device = Device::cuda;
  options_.compute = Compute::int8;
  expect_refused("--backend cuda: products take bfloat16 or float16 there, not --compute int8");
  options_.device.reset();  // auto runs on the CPU instead
  options_.compute = Compute::float32;
  EXPECT_EQ(plan().device, Device::cpu);
}

}  // namespace
}  // namespace ptrt
