// Steps with drafts on the CUDA backend, recorded or not: the tokens of a run without drafts.
#include <gtest/gtest.h>

#include <cstdlib>

#include "model_io/file/model_file.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"
#include "ops/fixtures/cuda_provider.h"
#include "runtime/engine_fixture.h"
#include "runtime/speculate/oracle_drafter.h"

#ifndef PTRT_DEMO_MODEL
#error "PTRT_DEMO_MODEL comes from CMake"
#endif

namespace ptrt::testing {
namespace {

struct Outcome {
  std::vector<Completion> completions;
  RunCounters counters;
  std::uint64_t replays = 0;
};

TEST(CudaDrafts, TokensAreThoseWithoutDrafts) {
  if (const CudaForTests cuda = make_cuda_for_tests(); cuda.backend == nullptr) GTEST_SKIP() << cuda.missing;
  const char* elsewhere = std::getenv("PTRT_DEMO_MODEL");  // of programs that were moved
  const ModelFile file(elsewhere != nullptr ? elsewhere : PTRT_DEMO_MODEL);
  const ModelConfig& config = file.config();
  const TokenizerChoice tokenizer = make_tokenizer(file.tokenizer(), config);
  std::vector<Request> requests;
  for (const char* text : {"Add 36 and 72.\n", "Is 3 odd?\n"}) {
    Request request;
    request.line = std::ssize(requests);
    request.tokens = tokenizer.tokenizer->encode(text);
    request.max_tokens = 22 - std::ssize(requests);
    request.ignore_eos = true;
    requests.push_back(request);
  }
  const auto run = [&](bool graphs, const DrafterFactory& drafters) {
    CudaForTests cuda = make_cuda_for_tests({.graphs = graphs});
    TrackShard shard = load_shard(file, 0, config.tracks, *cuda.backend);
    EngineOptions options{.max_batch = 2, .max_rows = 24, .kv_pages = 16, .kv_dtype = DType::bfloat16};
    options.drafters = drafters;
    EngineRunner runner(config, std::move(cuda.backend), std::move(shard), tokenizer.tokenizer.get(),
                        options);
    const std::uint64_t before = graph_launches_for_tests();
    Outcome outcome;
    outcome.completions = runner.run(Task::generate, requests);
    outcome.counters = runner.counters();
    outcome.replays = graph_launches_for_tests() - before;
    return outcome;
  };
  const Outcome plain = run(true, {});
  const auto known = std::make_shared<KnownOutputs>();
  for (std::size_t i = 0; i < requests.size(); i++) (*known)[requests[i].line] = plain.completions[i].tokens;
  // Two sequences of one token and two drafts each are six rows, padded to eight.
  const DrafterFactory drafters = make_oracle_drafters(known, 2, 0.7, config.vocab_size);
  for (const bool graphs : {false, true}) {
    const Outcome drafted = run(graphs, drafters);
    for (std::size_t i = 0; i < requests.size(); i++)
      EXPECT_EQ(drafted.completions[i].tokens, plain.completions[i].tokens) << "request " << i;
    const RunCounters& counters = drafted.counters;
    EXPECT_GT(counters.accepted_tokens, 0u);
    EXPECT_GT(counters.drafted_tokens, counters.accepted_tokens);
    EXPECT_LT(counters.steps, plain.counters.steps);
    if (cuda_kind() != CudaKind::emulated) continue;
    // All but those with prompts, and the first of each of the sizes 1, 2, 4 and 8.
    if (graphs)
      EXPECT_GE(drafted.replays + 6, counters.steps);
    else
      EXPECT_EQ(drafted.replays, 0u);
  }
}

}  // namespace
}  // namespace ptrt::testing
