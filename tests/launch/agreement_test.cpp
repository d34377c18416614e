#include "launch/session/agreement.h"

#include <gtest/gtest.h>

#include <vector>

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

}  // namespace
}  // namespace ptrt
