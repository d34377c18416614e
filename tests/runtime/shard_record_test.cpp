#include "runtime/journal/shard_record.h"

#include <gtest/gtest.h>

#include <fstream>

#include "kernels/base/error.h"
#include "kernels/base/files.h"
#include "temp_folder.h"

namespace ptrt {
namespace {

class ShardRecordFile : public ::testing::Test {
 protected:
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

  const TempFolder folder_;
  const std::string results_ = folder_ / "results";
  const ShardRecord record_{.batch = {"generate-0123", 0xfedcba9876543210},
                            .shard = {2, 5},
                            .file_lines = 103,
                            .lines = {{2, 3}, {17, 18}},
                            .kv_tokens = 4096,
                            .kv_cache_exceeded = {7, 22},
                            .most_tokens = 4000,
                            .bytes = 12345,
                            .results_crc32c = 0x89abcdef};
};

TEST_F(ShardRecordFile, ComesBack) {
  EXPECT_FALSE(read_shard_record(results_));
  write_shard_record(results_, record_);
  EXPECT_EQ(read_shard_record(results_), record_);
  EXPECT_EQ(record_.results(), 21);
  ShardRecord with_blanks = record_;
  with_blanks.lines = {{2, 2}, {17, 16}, {102, 1}};
  with_blanks.blank_lines = 2;
  write_shard_record(results_, with_blanks);
  EXPECT_EQ(read_shard_record(results_), with_blanks);
  with_blanks.blank_lines = 1;
  write_shard_record(results_, with_blanks);
  EXPECT_THROW(read_shard_record(results_), Error) << "one line too few";
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

// With a right checksum, as only a program writes it.
TEST_F(ShardRecordFile, OneThatCannotBeIsRefused) {
  const auto changed = [&](auto change) {
    ShardRecord record = record_;
    change(record);
    return record;
  };
  const ShardRecord bad[] = {
      changed([](ShardRecord& record) {
        record.shard = {0, 0};
      }),
      changed([](ShardRecord& record) {
        record.shard = {5, 5};
      }),
      changed([](ShardRecord& record) {
        record.shard = {2, std::int64_t{1} << 62};
      }),
      changed([](ShardRecord& record) { record.file_lines = 108; }),
      changed([](ShardRecord& record) { record.file_lines = 98; }),
      changed([](ShardRecord& record) {
        record.lines = {{2, 20}};
      }),
      changed([](ShardRecord& record) {
        record.lines = {{2, 3}, {22, 17}};
      }),
      changed([](ShardRecord& record) { record.lines = {}; }),
      changed([](ShardRecord& record) {
        record.lines = {{2, 21}, {107, 0}};
      }),
      changed([](ShardRecord& record) { record.kv_cache_exceeded = {8}; }),
      changed([](ShardRecord& record) { record.kv_cache_exceeded = {107}; }),
      changed([](ShardRecord& record) { record.kv_cache_exceeded = {}; }),
      changed([](ShardRecord& record) { record.kv_tokens = 0; }),
  };
  for (const ShardRecord& record : bad) {
    write_shard_record(results_, record);
    const std::string written = text();
    EXPECT_TRUE(refuses(written)) << written;
  }
}

TEST(BatchIdentity, LinesThatDoNotFitAreInTheDigest) {
  const BatchIdentity batch{"score-ab", 0x12};
  EXPECT_EQ(batch.digest(), "score-ab-0000000000000012");
}

}  // namespace
}  // namespace ptrt
