// The quick reader of request lines against the library: what it reads is the same value, of the same types.
#include "launch/requests/quick_json.h"

#include <gtest/gtest.h>

#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "launch/requests/line_json.h"

namespace ptrt {
namespace {

using nlohmann::json;

bool is_same(const json& a, const json& b) {
  if (a.type() != b.type()) return false;
  if (!a.is_structured()) return a == b && a.dump() == b.dump();
  if (a.size() != b.size()) return false;
  for (auto left = a.begin(), right = b.begin(); left != a.end(); ++left, ++right)
    if ((a.is_object() && left.key() != right.key()) || !is_same(*left, *right)) return false;
  return true;
}

json read_by_library(const std::string& text) {
  return json::parse(text, nullptr, false);
}

// Whether it was read quickly.
bool expect_same(const std::string& text) {
  const auto quick = read_quickly(text, kDeepestLine);
  if (!quick) return false;
  const json whole = read_by_library(text);
  EXPECT_FALSE(whole.is_discarded()) << text;
  EXPECT_TRUE(is_same(*quick, whole)) << text << " is read as " << quick->dump();
  return true;
}

const std::vector<std::string> kQuick = {
    R"({"tokens": [151, 3, 0, 255], "max_tokens": 1})",
    R"( {"id":"a","prompt":"What is 23 + 45?\n","stop":["\n","\t\"\\\/\b\f\r"],"logprobs":true} )",
    R"({"temperature":0.7,"top_p":1e-3,"min_p":-0.0,"seed":-0,"x":-12,"y":1E+2,"z":999999999999999999})",
    R"({"a":{},"b":[],"c":[[],[{}],null,false],"":""})",
    "\t[1 , 2\r\n]",
    "1.5",
    R"("text")",
    "null",
};

TEST(QuickJson, ReadsWhatTheLibraryReads) {
  for (const std::string& text : kQuick) EXPECT_TRUE(expect_same(text)) << text;
}

TEST(QuickJson, LeavesTheRestToTheLibrary) {
  for (const char* text : {"",
                           " ",
                           "{",
                           "}",
                           "[1,]",
                           "[,1]",
                           R"({"a":1,})",
                           R"({"a" 1})",
                           R"({a:1})",
                           "01",
                           "-",
                           "-01",
                           "1.",
                           ".5",
                           "1e",
                           "1e+",
                           "+1",
                           "0x1",
                           "tru",
                           "nulll",
                           "1 2",
                           "[1 2]",
                           R"("a)",
                           R"("\x")",
                           "\"\t\"",
                           "NaN",
                           R"("\u0041")",
                           "\"\xc3\xa9\"",
                           "\"\x7f\"",
                           R"({"a":1,"a":2})",
                           "1234567890123456789",
                           "1e400",
                           "1e-400",
                           "\"a\\"})
    EXPECT_FALSE(read_quickly(text, kDeepestLine)) << text;
  const std::string deep = std::string(3, '[') + std::string(3, ']');
  EXPECT_TRUE(read_quickly(deep, 3));
  EXPECT_FALSE(read_quickly(deep, 2));
}

TEST(QuickJson, ReadsDamagedLinesAsTheLibraryDoes) {
  const std::string alphabet = " {}[]\",:0123456789.eE+-truefalsn\\/b\t\x01\x7f\xc3\xa9";
  std::mt19937 random(1);
  const auto below = [&](std::size_t count) { return random() % count; };
  std::int64_t quick = 0, others = 0;
  for (int i = 0; i < 100000; i++) {
    std::string text = kQuick[below(kQuick.size())];
    for (auto edits = 1 + below(3); edits > 0 && !text.empty(); edits--) {
      const std::size_t at = below(text.size());
      const char c = alphabet[below(alphabet.size())];
      switch (below(3)) {
        case 0:
          text[at] = c;
          break;
        case 1:
          text.insert(at, 1, c);
          break;
        default:
          text.erase(at, 1);
      }
    }
    (expect_same(text) ? quick : others)++;
    if (HasFailure()) return;
  }
  EXPECT_GT(quick, 20000);
  EXPECT_GT(others, 20000);
}

}  // namespace
}  // namespace ptrt
