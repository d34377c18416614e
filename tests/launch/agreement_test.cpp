#include "launch/session/agreement.h"

#include <gtest/gtest.h>

#include <vector>

#include "answering_job.h"
#include "launch/job/process.h"
#include "launch/options/command_line.h"

namespace ptrt {
namespace {

TEST(Differences, AreToldByNameAndRank) {
  const std::vector<RankFacts> ranks{{"rank 0 (a)", {{"heads", "4"}, {"rope_theta", "10000.0"}}},
                                     {"rank 1 (b)", {{"heads", "4"}, {"rope_theta", "500000.0"}}},
                                     {"rank 2 (c)", {{"heads", "4"}, {"rope_theta", "10000.0"}, {"x", "1"}}}};
  EXPECT_EQ(describe_differences(ranks),
            "rope_theta: 10000.0 on rank 0 (a), rank 2 (c), 500000.0 on rank 1 (b); "
            "x: none on rank 0 (a), rank 1 (b), 1 on rank 2 (c)");
  EXPECT_EQ(describe_differences(ranks, true),
            "rope_theta: 10000.0 on rank 0 (a), rank 2 (c), 500000.0 on rank 1 (b)");
  EXPECT_EQ(describe_differences(std::vector(ranks.begin(), ranks.begin() + 1)), "");
}

TEST(Differences, AreCutShort) {
  std::vector<RankFacts> ranks(100);
  for (std::size_t r = 0; r < ranks.size(); r++) {
    ranks[r].rank = "rank " + std::to_string(r);
    for (const char* name : {"a", "b", "c", "d", "e", "f", "g"}) ranks[r].facts[name] = r == 99 ? "1" : "0";
  }
  const std::string text = describe_differences(ranks);
  EXPECT_TRUE(text.starts_with("a: 0 on rank 0, rank 1, rank 2 and 96 more, 1 on rank 99; b: ")) << text;
  EXPECT_TRUE(text.ends_with("; and 2 more")) << text;
}

TEST(Configuration, IsComparedKeyByKey) {
  ModelConfig config;
  config.rope_theta = 500000;
  const Facts facts = facts_of(config);
  EXPECT_EQ(facts.at("rope_theta"), "500000.0");
  EXPECT_EQ(facts.at("fusion.op"), "\"mean\"");
  EXPECT_TRUE(facts.contains("eos_token_ids"));
}

std::map<std::string, std::string> common(std::vector<const char*> more) {
  std::vector<const char*> arguments{"ptrt", "generate", "model.h5", "requests.jsonl", "-o", "results.jsonl"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return parse_command_line(static_cast<int>(arguments.size()), arguments.data()).common;
}

TEST(CommonOptions, HaveDefaultsAndNoFiles) {
  const auto plain = common({});
  EXPECT_EQ(plain.at("command"), "generate");
  EXPECT_EQ(plain.at("--max-batch"), "32");
  EXPECT_EQ(plain, common({"--max-batch", "32", "--threads", "3", "--quiet", "--kv-cache-bytes", "1G"}));
  for (const auto& [name, value] : plain) EXPECT_EQ(value.find("jsonl"), std::string::npos) << name;
  EXPECT_NE(plain, common({"--max-batch", "31"}));
  EXPECT_NE(plain, common({"--resume"}));
  EXPECT_NE(plain, common({"--weights", "int8"}));
  EXPECT_NE(plain, common({"--no-such-option"}));
}

// Replicas may run on other GPUs than each other, the ranks of one may not.
TEST(Agreement, OneKindOfGpuAReplica) {
  const auto rank = [](const char* name, const char* gpu) {
    return RankFacts{name, {{"GPU", gpu}, {"NCCL", "23007"}}};
  };
  const std::vector<RankFacts> h200{rank("rank 0 (a)", "H200"), rank("rank 1 (a)", "H200")};
  const std::vector<RankFacts> h100{rank("rank 2 (b)", "H100"), rank("rank 3 (b)", "H100")};
  const std::vector<RankFacts> mixed{h200[1], h100[0]};
  EXPECT_EQ(describe_differences({{0, h200}, {1, h100}}), "");
  EXPECT_EQ(describe_differences({{0, h200}, {1, mixed}}),
            "in replica 1, GPU: H200 on rank 1 (a), H100 on rank 2 (b)");
}

TEST(Agreement, ReplicasExchangeFactsOnlyWhereTheyDiffer) {
  const Facts mine{{"GPU", "H200"}};
  AnsweringJob same(1, [](const std::string& text) { return std::vector{text}; });
  agree_in_replica(same, 0, "their GPUs", mine);
  EXPECT_EQ(same.exchanges, 1);
  AnsweringJob replicas(2,
                        [](const std::string&) { return std::vector<std::string>(2, "1 0123456789abcdef"); });
  agree_in_replica(replicas, 0, "their GPUs", mine);
  EXPECT_EQ(replicas.exchanges, 1) << "replica 1 has other GPUs";

  int exchange = 0;
  AnsweringJob mixed(1, [&](const std::string& text) {
    const std::vector<std::string> answers{"0 0123456789abcdef", "rank 1 (b)", R"({"GPU":"H100"})"};
    return std::vector{exchange < 3 ? answers[static_cast<std::size_t>(exchange++)] : text};
  });
  try {
    agree_in_replica(mixed, 0, "their GPUs", mine);
    ADD_FAILURE() << "they agree";
  } catch (const AgreedError& error) {
    EXPECT_STREQ(
        error.what(),
        "the ranks differ in their GPUs: in replica 0, GPU: H200 on rank 0 (here), H100 on rank 1 (b)");
  }
}

}  // namespace
}  // namespace ptrt
