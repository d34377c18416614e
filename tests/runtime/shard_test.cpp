#include "runtime/job/shard.h"

#include <gtest/gtest.h>

#include <map>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

TEST(Shard, Parses) {
  EXPECT_EQ(parse_shard("0/1"), (Shard{0, 1}));
  EXPECT_EQ(parse_shard("3/4"), (Shard{3, 4}));
  EXPECT_EQ(parse_shard("1048575/1048576"), (Shard{1048575, 1048576}));
  for (const char* bad : {"", "/", "1", "0/0", "4/4", "-1/4", "+1/4", "1/-4", " 1/4", "1/4 ", "1/4/2",
                          "0x1/4", "1.0/4", "0/1048577", "0/99999999999999999999", "a/b", "slurm"})
    EXPECT_FALSE(parse_shard(bad)) << bad;
}

TEST(Shard, EveryLineIsInOneShardAtItsPlace) {
  for (std::int64_t count = 1; count <= 5; count++)
    for (std::int64_t lines = 0; lines <= 12; lines++) {
      std::int64_t all = 0;
      for (std::int64_t index = 0; index < count; index++) {
        const Shard shard{index, count};
        std::int64_t place = 0;
        for (std::int64_t line = 0; line < lines; line++)
          if (shard.has(line)) {
            EXPECT_EQ(shard.place_of(line), place);
            EXPECT_EQ(shard.line_at(place), line);
            place++;
          }
        EXPECT_EQ(shard.lines_of(lines), place);
        all += place;
      }
      EXPECT_EQ(all, lines);
    }
}

Shard of_array(std::map<std::string, std::string> values) {
  return shard_of_slurm_array([&](const char* name) -> const char* {
    const auto found = values.find(std::string(name).substr(std::string("SLURM_ARRAY_TASK_").size()));
    return found == values.end() ? nullptr : found->second.c_str();
  });
}

TEST(Shard, OfASlurmArray) {
  EXPECT_EQ(of_array({{"ID", "0"}, {"MIN", "0"}, {"MAX", "3"}, {"STEP", "1"}, {"COUNT", "4"}}),
            (Shard{0, 4}));
  EXPECT_EQ(of_array({{"ID", "3"}, {"MIN", "0"}, {"MAX", "3"}, {"STEP", "1"}, {"COUNT", "4"}}),
            (Shard{3, 4}));
  EXPECT_EQ(of_array({{"ID", "9"}, {"MIN", "1"}, {"MAX", "13"}, {"STEP", "4"}, {"COUNT", "4"}}),
            (Shard{2, 4}));
  EXPECT_EQ(of_array({{"ID", "5"}, {"MIN", "5"}, {"STEP", "1"}, {"COUNT", "1"}}), (Shard{0, 1}));
}

std::string refusal(const std::map<std::string, std::string>& values) {
  try {
    of_array(values);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_input);
    return error.what();
  }
  return "";
}

TEST(Shard, RefusesAnArrayThatIsNoRow) {
  const std::map<std::string, std::string> good{
      {"ID", "2"}, {"MIN", "0"}, {"MAX", "3"}, {"STEP", "1"}, {"COUNT", "4"}};
  EXPECT_EQ(refusal(good), "");
  for (const char* name : {"ID", "MIN", "STEP", "COUNT"}) {
    auto values = good;
    values.erase(name);
    EXPECT_NE(refusal(values).find(fmt::format("SLURM_ARRAY_TASK_{} is not set", name)), std::string::npos)
        << name;
    values[name] = "two";
    EXPECT_NE(refusal(values).find(fmt::format("SLURM_ARRAY_TASK_{} is 'two'", name)), std::string::npos)
        << name;
  }
  const auto with = [&](const char* name, const char* value) {
    auto values = good;
    values[name] = value;
    return refusal(values);
  };
  EXPECT_NE(with("STEP", "0"), "");
  EXPECT_NE(with("COUNT", "0"), "");
  EXPECT_NE(with("COUNT", "2"), "");
  EXPECT_NE(with("MIN", "3"), "");
  EXPECT_NE(with("STEP", "3"), "");
  EXPECT_NE(with("MAX", "7"), "");  // --array=0,1,2,7
  EXPECT_NE(with("MAX", "many"), "");
}

}  // namespace
}  // namespace ptrt
