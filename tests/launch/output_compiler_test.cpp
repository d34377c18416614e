// What the compiler of structured output keeps. What it makes is tested in tests/structured.
#include "launch/python/output_compiler.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace ptrt {
namespace {

std::string line_of(int letters) {
  return fmt::format(R"({{"prompt": "x", "structured_outputs": {{"regex": "a{{{}}}"}}}})", letters);
}

TEST(OutputCompiler, KeepsAutomataWithinABoundOfBytes) {
  PythonHelper helper;
  OutputCompiler all(helper);
  const auto first = all.compile(line_of(40), false).automaton;
  EXPECT_EQ(all.compile(line_of(40), false).automaton, first) << "it is shared";
  const std::size_t one = all.kept_bytes();
  EXPECT_GT(one, first->bytes()) << "the answer counts too";
  OutputCompiler some(helper, 3 * one);
  std::size_t most = 0;
  for (int letters = 31; letters <= 40; letters++) {
    some.compile(line_of(letters), false);
    most = std::max(most, some.kept_bytes());
  }
  EXPECT_GT(most, one);
  EXPECT_LE(most, 3 * one);
  OutputCompiler none(helper, one / 2);
  EXPECT_EQ(*none.compile(line_of(40), false).automaton, *first);
  EXPECT_EQ(none.kept_bytes(), 0u);
}

}  // namespace
}  // namespace ptrt
