// The quick reader of request lines against the library: what it reads is the same value, of the same types.
#include "launch/requests/quick_json.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "launch/requests/bad_request.h"
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

// Whether it was read quickly.
bool expect_same(const std::string& text) {
  const auto quick = read_quickly(text, kDeepestLine);
  if (!quick) return false;
  try {
    const LineJson line = read_by_library(text, 0);
    EXPECT_FALSE(line.has_twice) << text;
    EXPECT_TRUE(is_same(*quick, line.value)) << text << " is read as " << quick->dump();
  } catch (const BadRequest& bad) {
    ADD_FAILURE() << text << " is read, but " << bad.error.message;
  }
  return true;
}

const std::vector<std::string> kQuick = {
    R"({"tokens": [151, 3, 0, 255], "max_tokens": 1})",
    R"( {"id":"a","prompt":"What is 23 + 45?\n","stop":["\n","\t\"\\\/\b\f\r"],"logprobs":true} )",
    R"({"temperature":0.7,"top_p":1e-3,"min_p":-0.0,"seed":-0,"x":-12,"y":1E+2,"z":999999999999999999})",
    R"([18446744073709551615,9223372036854775808,9223372036854775807,-9223372036854775808,1000000000000000000])",
    R"([0.30000000000000004,2.2250738585072014e-308,1.7976931348623157e308,123456789012345678901.5,-1E-0])",
    "{\"caf\xc3\xa9\":\"\xe2\x82\xac \xf0\x9f\x98\x80 \xef\xbf\xbd \x7f\"}",
    R"(["\u0041\u00e9\u20AC\ufffd\uD7FF\ue000","\u0000","\ud83d\ude00\uDBFF\uDFFF"])",
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
                           R"("\u004")",
                           R"("\u00g0")",
                           R"("\u-001")",
                           R"("\ud83d")",
                           R"("\ude00")",
                           R"("\ud83d\u0041")",
                           R"("\ud83d\n")",
                           R"("\ud83d\ud83d")",
                           R"("\u)",
                           "\"\xc3\"",
                           "\"\xa9\"",
                           "\"\xc0\x80\"",
                           "\"\xed\xa0\x80\"",
                           "\"\xf4\x90\x80\x80\"",
                           "\"\xf0\x9f\x98\\n\"",
                           "\xc3\xa9",
                           R"({"a":1,"a":2})",
                           "18446744073709551616",
                           "-9223372036854775809",
                           "1.7976931348623159e308",
                           "1e400",
                           "1e-400",
                           "\"a\\"})
    EXPECT_FALSE(read_quickly(text, kDeepestLine)) << text;
  const auto nested = [](std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_TRUE(read_quickly(nested(3), 3));
  EXPECT_FALSE(read_quickly(nested(3), 2));
  EXPECT_TRUE(expect_same(nested(kDeepestLine)));
  EXPECT_THROW(read_by_library(nested(kDeepestLine + 1), 0), BadRequest);
}

// Numbers that are subnormal or beyond the range of double may be left to the library.
TEST(QuickJson, NumbersAreTheLibrarysBitForBit) {
  for (const char* text : {"2.2250738585072011e-308", "4.9e-324", "2.4703282292062328e-324", "-5e-324"}) {
    expect_same(text);
    EXPECT_TRUE(is_same(read_line_json(text, 0).value, read_by_library(text, 0).value)) << text;
  }
  std::mt19937_64 random(1);
  for (int i = 0; i < 20000; i++) {
    const std::uint64_t bits = random();
    EXPECT_TRUE(expect_same(fmt::format("{}", bits)));
    EXPECT_TRUE(expect_same(fmt::format("{}", static_cast<std::int64_t>(bits))));
    const auto number = std::bit_cast<double>(bits);
    if (!std::isfinite(number)) continue;
    for (const int digits : {1, 8, 16, 17, 25}) {
      const std::string text = fmt::format("{:.{}e}", number, digits);
      EXPECT_TRUE(expect_same(text) || !std::isnormal(std::strtod(text.c_str(), nullptr))) << text;
    }
    if (HasFailure()) return;
  }
}

// Of strings nothing is left to the library: what is not read quickly is no JSON.
TEST(QuickJson, ReadsEveryString) {
  const std::vector<std::string> parts = {
      "a",    "\xc3", "\xa9", "\xe2\x82\xac", "\xed\xa0\x80", "\xf0\x9f\x98\x80", "\xf4", "\x90", "\x80",
      "\xbf", "\\u",  "00e9", "\\ud83d",      "\\ude00",      "\\uDFFF",          "\\n",  "\x1f", "\x7f"};
  std::mt19937 random(1);
  std::int64_t quick = 0, refused = 0;
  for (int i = 0; i < 50000; i++) {
    std::string text = "\"";
    for (auto count = random() % 5; count > 0; count--) text += parts[random() % parts.size()];
    text += '"';
    if (expect_same(text)) {
      quick++;
    } else {
      EXPECT_THROW(read_by_library(text, 0), BadRequest) << text;
      refused++;
    }
    if (HasFailure()) return;
  }
  EXPECT_GT(quick, 5000);
  EXPECT_GT(refused, 5000);
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
