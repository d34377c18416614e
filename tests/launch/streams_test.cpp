// Request files of every kind: compressed, damaged, cut off, several, and streams whose writer is slow.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "kernels/base/error.h"
#include "kernels/base/files.h"
#include "launch/streams/compression.h"
#include "launch/streams/request_input.h"
#include "launch/streams/result_output.h"
#include "temp_folder.h"

namespace ptrt {
namespace {

std::string encoded(Compression compression, std::string_view text,
                    std::size_t piece = std::size_t{1} << 30) {
  const auto encoder = make_encoder(compression);
  std::string out;
  for (; !text.empty(); text.remove_prefix(std::min(piece, text.size())))
    encoder->encode(text.substr(0, piece), out);
  encoder->finish(out);
  return out;
}

// Text that does not compress to nothing.
std::string sample(std::size_t lines) {
  std::string text;
  for (std::size_t i = 0; i < lines; i++)
    text += fmt::format("{{\"tokens\": [{}, {}]}}\n", i * 2654435761U % 100003, i % 7);
  return text;
}

class Streams : public testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& bytes) const {
    std::string path = folder_ / name;
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  // All lines, each with a line break; throws what reading throws.
  static std::string lines_of(const std::vector<std::string>& paths) {
    RequestInput input(paths);
    RequestInput::Lines lines = input.lines();
    std::string text;
    while (const auto line = lines.next()) text += fmt::format("{}\n", *line);
    return text;
  }
  // What reading a file with these bytes says; empty: nothing.
  std::string refusal(const std::string& name, const std::string& bytes) const {
    try {
      lines_of({write(name, bytes)});
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_input);
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
      return error.what();
    }
    return "";
  }

  const TempFolder folder_;
};

constexpr std::pair<Compression, const char*> kKinds[] = {{Compression::gzip, "a.jsonl.gz"},
                                                          {Compression::zstd, "a.jsonl.zst"}};

TEST_F(Streams, CompressedTextComesBackHoweverItIsCut) {
  for (const auto& [kind, name] : kKinds)
    for (const std::size_t lines : {std::size_t{0}, std::size_t{1}, std::size_t{50000}}) {
      const std::string text = sample(lines), bytes = encoded(kind, text);
      EXPECT_EQ(lines_of({write(name, bytes)}), text);
      for (const std::size_t piece : {std::size_t{7}, std::size_t{65536}, std::size_t{200000}})
        EXPECT_EQ(encoded(kind, text, piece), bytes) << name << " in pieces of " << piece;
      EXPECT_LT(bytes.size(), text.size() / 2 + 100);
    }
}

TEST_F(Streams, MembersAndFramesFollowEachOther) {
  const std::string one = sample(3), two = sample(4000);
  for (const auto& [kind, name] : kKinds) {
    EXPECT_EQ(lines_of({write(name, encoded(kind, one) + encoded(kind, "") + encoded(kind, two))}),
              one + two);
    // A line may begin in one and end in the next.
    EXPECT_EQ(lines_of({write(name, encoded(kind, one.substr(0, 10)) + encoded(kind, one.substr(10)))}), one);
    EXPECT_NE(refusal(name, encoded(kind, one) + "rest"), "");
  }
}

TEST_F(Streams, EveryCutIsRefused) {
  for (const auto& [kind, name] : kKinds) {
    const std::string bytes = encoded(kind, sample(40));
    ASSERT_EQ(refusal(name, bytes), "");
    for (std::size_t length = 0; length < bytes.size(); length++)
      EXPECT_NE(refusal(name, bytes.substr(0, length)), "") << name << " cut to " << length;
  }
}

// A changed bit is refused or changes nothing that is read (a flag of gzip's header, for instance).
TEST_F(Streams, EveryChangedByteIsRefusedOrHarmless) {
  const std::string text = sample(40);
  for (const auto& [kind, name] : kKinds) {
    const std::string bytes = encoded(kind, text);
    std::size_t refused = 0;
    for (std::size_t at = 0; at < bytes.size(); at++) {
      std::string damaged = bytes;
      damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
      try {
        EXPECT_EQ(lines_of({write(name, damaged)}), text) << name << " at " << at;
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::bad_input);
        refused++;
      }
    }
    EXPECT_GT(refused, bytes.size() - 12) << name;
  }
}

TEST_F(Streams, AFileIsWhatItsNameSays) {
  const std::string text = sample(3);
  EXPECT_NE(refusal("a.jsonl.gz", text).find("is not gzip data"), std::string::npos);
  EXPECT_NE(refusal("a.jsonl.zst", text).find("is not zstd data"), std::string::npos);
  EXPECT_NE(refusal("a.jsonl.zst", encoded(Compression::gzip, text)).find("is not zstd data"),
            std::string::npos);
  EXPECT_NE(refusal("a.jsonl", encoded(Compression::gzip, text)).find("does not end in .gz"),
            std::string::npos);
  EXPECT_NE(refusal("a.jsonl", encoded(Compression::zstd, text)).find("does not end in .zst"),
            std::string::npos);
}

// A file of kilobytes whose one line has no end costs no more memory than the longest line may.
TEST_F(Streams, ALineThatIsTooLong) {
  const auto encoder = make_encoder(Compression::zstd);
  std::string bytes;
  const std::string piece(std::size_t{4} << 20, '[');
  for (std::size_t i = 0; i <= kLongestLine / piece.size(); i++) encoder->encode(piece, bytes);
  encoder->finish(bytes);
  EXPECT_LT(bytes.size(), std::size_t{1} << 20);
  EXPECT_NE(refusal("a.jsonl.zst", "").find("cut off"), std::string::npos);
  EXPECT_NE(refusal("a.jsonl.zst", bytes).find("line 1 is longer than 256 MiB"), std::string::npos);
}

// Of each file the last line needs no line break.
TEST_F(Streams, SeveralFilesAreOne) {
  const std::string a = write("a.jsonl", "1\n\n2"),
                    b = write("b.jsonl.gz", encoded(Compression::gzip, "3\n4\n")),
                    c = write("c.jsonl.zst", encoded(Compression::zstd, "")), d = write("d.jsonl", "5");
  RequestInput input({a, b, c, d});
  EXPECT_FALSE(input.is_stream());
  std::vector<std::string> seen;
  std::uint64_t digest = 0;
  for (int reading = 0; reading < 2; reading++) {
    seen.clear();
    RequestInput::Lines lines = input.lines();
    while (const auto line = lines.next()) seen.push_back(fmt::format("{}: {}", lines.place(), *line));
    if (reading == 0) digest = input.digest();
  }
  EXPECT_EQ(seen, (std::vector<std::string>{"line 1 of " + a + ": 1", "line 2 of " + a + ": ",
                                            "line 3 of " + a + ": 2", "line 1 of " + b + ": 3",
                                            "line 2 of " + b + ": 4", "line 1 of " + d + ": 5"}));
  const auto digest_of = [](const std::vector<std::string>& paths) {
    lines_of(paths);
    RequestInput other(paths);
    for (RequestInput::Lines lines = other.lines(); lines.next();) {
    }
    return other.digest();
  };
  EXPECT_EQ(digest_of({a, b, c, d}), digest);
  EXPECT_NE(digest_of({b, a, c, d}), digest);
  EXPECT_NE(digest_of({a, b, d}), digest);
  EXPECT_EQ(digest_of({a}), XXH3_64bits("1\n\n2", 4));
}

TEST_F(Streams, AByteOrderMarkIsSkippedOnceAFile) {
  const std::string mark = "\xEF\xBB\xBF", a = write("a.jsonl", mark + "1\n" + mark + "2\n"),
                    b = write("b.jsonl.gz", encoded(Compression::gzip, mark + mark + "3")),
                    c = write("c.jsonl", mark);
  EXPECT_EQ(lines_of({a, b, c}), fmt::format("1\n{0}2\n{0}3\n\n", mark));
}

TEST_F(Streams, WhatCannotBeRead) {
  EXPECT_THROW(RequestInput(folder_ / "none"), Error);
  EXPECT_THROW(RequestInput(folder_ / "."), Error);
  EXPECT_THROW(RequestInput(std::vector<std::string>{"-", "-"}), Error);
}

// Results are written in the order of their lines, and those that wait for an earlier one are counted.
TEST_F(Streams, ResultsInOrder) {
  const std::string path = folder_ / "results.jsonl";
  ResultOutput output(path, {.most_held = 10, .most_lines = 4});
  for (const std::int64_t line : {0, 2, 5}) output.expect(line);
  EXPECT_FALSE(output.is_full());
  output.add(5, "five");
  output.add(2, "two");
  output.write();
  EXPECT_FALSE(output.is_full()) << "seven bytes";
  output.expect(7);
  EXPECT_TRUE(output.is_full()) << "four lines";
  output.add(7, "seven");
  output.write();
  EXPECT_TRUE(output.is_full()) << "twelve bytes";
  EXPECT_FALSE(output.has_all());
  output.add(0, "none");
  output.write();
  EXPECT_FALSE(output.is_full());
  EXPECT_TRUE(output.has_all());
  EXPECT_FALSE(std::filesystem::exists(path)) << "before it is whole";
  output.publish();
  EXPECT_EQ(lines_of({path}), "none\ntwo\nfive\nseven\n");
}

TEST_F(Streams, ResultsAtAnEarlyEnd) {
  const std::string path = folder_ / "results.jsonl.zst";
  std::string kept;
  {
    ResultOutput output(path, {});
    for (std::int64_t line = 0; line < 4; line++) output.expect(line);
    output.add(3, "three");
    output.add(1, "one");
    kept = output.end_early();
  }
  EXPECT_EQ(read_text_file(kept, "the results"), "one\nthree\n");
  EXPECT_FALSE(std::filesystem::exists(path));
  {
    ResultOutput output(path, {.unordered = true});
    for (std::int64_t line = 0; line < 2; line++) output.expect(line);
    output.add(1, "one");
    output.write();
    EXPECT_FALSE(output.has_all());
    output.add(0, "none");
    output.write();
    output.publish();
  }
  EXPECT_EQ(lines_of({path}), "one\nnone\n");
}

// A pipe is opened before it has a writer; a line is given as soon as it is there, though the writer has more.
TEST_F(Streams, APipeIsReadAsItIsWritten) {
  const std::string path = folder_ / "pipe";
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  RequestInput input(path);
  EXPECT_TRUE(input.is_stream());
  RequestInput::Lines lines = input.lines();
  EXPECT_FALSE(lines.next());
  EXPECT_TRUE(lines.waits());
  const auto next = [&] {
    for (;;) {
      if (const auto line = lines.next()) return std::string(*line);
      if (!lines.waits()) return std::string("the end");
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  };
  {
    std::ofstream writer(path, std::ios::binary);
    for (int i = 0; i < 3; i++) {
      writer << i << "\nhalf" << std::flush;
      EXPECT_EQ(next(), (i == 0 ? "" : "half") + std::to_string(i));
    }
    EXPECT_FALSE(lines.next());
    EXPECT_TRUE(lines.waits());
  }
  EXPECT_EQ(next(), "half");
  EXPECT_EQ(next(), "the end");
}

TEST_F(Streams, ACompressedPipeAndOneThatIsLeft) {
  const std::string path = folder_ / "pipe.gz", text = sample(30000);
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  RequestInput input(path);
  std::thread writer([&] { std::ofstream(path, std::ios::binary) << encoded(Compression::gzip, text); });
  std::string seen;
  for (RequestInput::Lines lines = input.lines();;) {
    if (const auto line = lines.next())
      seen += fmt::format("{}\n", *line);
    else if (!lines.waits())
      break;
  }
  writer.join();
  EXPECT_EQ(seen, text);
  // Nobody ever writes to this one.
  RequestInput other(path);
  RequestInput::Lines lines = other.lines();
  EXPECT_FALSE(lines.next());
}

}  // namespace
}  // namespace ptrt
