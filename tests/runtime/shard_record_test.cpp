#include "runtime/journal/shard_record.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "kernels/base/error.h"
#include "kernels/base/files.h"

namespace ptrt {
namespace {

class ShardRecordFile : public testing::Test {
 protected:
  ShardRecordFile() : results_(testing::TempDir() + "ptrt_shard_record") { std::filesystem::remove(path()); }
  ~ShardRecordFile() override { std::filesystem::remove(path()); }

  std::string path() const { return shard_record_path(results_); }
  std::string text() const { return read_text_file(path(), "the record"); }
  bool refuses(const std::string& text) const {
    std::ofstream(path(), std::ios::binary) << text;
    try {
      return read_shard_record(results_), false;
    } catch (const Error& error) {
      return error.code() == ExitCode::bad_input;
    }
  }

  const std::string results_;
  const ShardRecord record_{.batch = {"generate-0123", 0xfedcba9876543210},
                            .shard = {2, 5},
                            .file_lines = 103,
                            .lines = {{2, 3}, {22, 17}},
                            .kv_tokens = 4096,
                            .kv_cache_exceeded = {7, 22},
                            .bytes = 12345,
                            .results_crc32c = 0x89abcdef};
};

TEST_F(ShardRecordFile, ComesBack) {
  EXPECT_FALSE(read_shard_record(results_));
  write_shard_record(results_, record_);
  EXPECT_EQ(read_shard_record(results_), record_);
  EXPECT_EQ(record_.results(), 20);
  ShardRecord empty;
  empty.shard = {3, 4};
  write_shard_record(results_, empty);
  EXPECT_EQ(read_shard_record(results_), empty);
}

TEST_F(ShardRecordFile, EveryChangeIsRefused) {
  write_shard_record(results_, record_);
  const std::string good = text();
  EXPECT_FALSE(refuses(good));
  for (std::size_t i = 0; i < good.size(); i++) {
    std::string bad = good;
    bad[i] = bad[i] == '1' ? '2' : '1';
    EXPECT_TRUE(refuses(bad)) << bad;
    EXPECT_TRUE(refuses(good.substr(0, i))) << i;
  }
  for (const char* bad : {"", "{}", "[]", "null", R"({"ptrt_shard":1})", R"({"lines":[[1]],"index":-1})"})
    EXPECT_TRUE(refuses(bad)) << bad;
}

TEST(BatchIdentity, LinesThatDoNotFitAreInTheDigest) {
  const BatchIdentity batch{"score-ab", 0x12};
  EXPECT_EQ(batch.digest(), "score-ab-0000000000000012");
}

}  // namespace
}  // namespace ptrt
