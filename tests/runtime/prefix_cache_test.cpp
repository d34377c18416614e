#include "runtime/schedule/prefix_cache.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

constexpr PrefixCache::Root kRoot = -1;

std::vector<std::int32_t> counting(std::int64_t tokens, std::int32_t first = 0) {
  std::vector<std::int32_t> list(static_cast<std::size_t>(tokens));
  std::iota(list.begin(), list.end(), first);
  return list;
}

// As a sequence does when it is admitted: shares what is there, takes the rest and names it.
std::vector<std::int32_t> admit(PrefixCache& cache, const std::vector<std::int32_t>& tokens,
                                PrefixCache::Root root = kRoot) {
  std::vector<std::int32_t> pages;
  cache.share(root, tokens, cache.match(root, tokens, 1000).pages, pages);
  while (std::ssize(pages) < pages_for(std::ssize(tokens))) pages.push_back(cache.take());
  cache.name(root, tokens, pages);
  return pages;
}

std::int64_t found(const PrefixCache& cache, const std::vector<std::int32_t>& tokens,
                   PrefixCache::Root root = kRoot) {
  return cache.match(root, tokens, 1000).pages;
}

TEST(PrefixCache, FindsWholePagesThatBeginAlike) {
  PrefixCache cache(10);
  const auto tokens = counting(40);
  auto pages = admit(cache, tokens);
  ASSERT_EQ(pages.size(), 3u);
  EXPECT_EQ(found(cache, tokens), 2) << "the third page is not whole";
  EXPECT_EQ(cache.match(kRoot, tokens, 1).pages, 1);
  auto other = tokens;
  other[20]++;
  EXPECT_EQ(found(cache, other), 1);
  other = tokens;
  other[0]++;
  EXPECT_EQ(found(cache, other), 0) << "the second page is alike, but not what is before it";
  EXPECT_EQ(found(cache, tokens, -2), 0) << "another root";
  EXPECT_EQ(found(cache, counting(15)), 0);
}

TEST(PrefixCache, CountsUsers) {
  PrefixCache cache(10);
  auto first = admit(cache, counting(40)), second = admit(cache, counting(40));
  EXPECT_EQ(cache.free(), 6);
  EXPECT_EQ(first[1], second[1]);
  EXPECT_NE(first[2], second[2]);
  EXPECT_EQ(cache.match(kRoot, counting(40), 9).unused, 0);
  cache.release(first, 40);
  EXPECT_TRUE(first.empty());
  EXPECT_EQ(cache.free(), 7);
  cache.release(second, 40);
  EXPECT_EQ(cache.free(), 10) << "what nobody uses can be taken";
  EXPECT_EQ(cache.match(kRoot, counting(40), 9).unused, 2);
}

TEST(PrefixCache, EndsOfChainsGoFirstAndTheLeastRecentChain) {
  PrefixCache cache(6);
  auto old = admit(cache, counting(48)), recent = admit(cache, counting(48, 1000));
  cache.release(old, 48);
  cache.release(recent, 48);
  auto again = admit(cache, counting(16));  // of the old chain its beginning is used once more
  cache.release(again, 16);
  std::vector<std::int32_t> taken;
  const auto both = [&] { return std::pair(found(cache, counting(48)), found(cache, counting(48, 1000))); };
  const std::pair<std::int64_t, std::int64_t> expected[] = {{2, 3}, {1, 3}, {1, 2}, {1, 1}, {1, 0}, {0, 0}};
  for (const auto& left : expected) {
    taken.push_back(cache.take());
    EXPECT_EQ(both(), left);
  }
  EXPECT_EQ(cache.free(), 0);
  EXPECT_THROW(cache.take(), Error);
}

TEST(PrefixCache, APageThatWasNotWrittenLosesItsName) {
  PrefixCache cache(6);
  auto pages = admit(cache, counting(48));
  cache.release(pages, 40);
  EXPECT_EQ(found(cache, counting(48)), 2);
  EXPECT_EQ(cache.free(), 6);
}

TEST(PrefixCache, NobodyElseMayUseWhatIsNotWritten) {
  PrefixCache cache(6);
  auto writer = admit(cache, counting(32)), reader = admit(cache, counting(32));
  EXPECT_THROW(cache.release(writer, 16), Error);
}

// A sequence that must compute a page though there is one does not name its own, nor those after it.
TEST(PrefixCache, AnotherPageWithTheNameEndsTheNames) {
  PrefixCache cache(8);
  auto first = admit(cache, counting(32));
  std::vector<std::int32_t> second;
  for (int i = 0; i < 3; i++) second.push_back(cache.take());
  EXPECT_EQ(cache.name(kRoot, counting(48), second), 0);
  EXPECT_EQ(found(cache, counting(48)), 2);
  cache.release(second, 48);
  cache.release(first, 32);
  EXPECT_EQ(cache.free(), 8);
}

TEST(PrefixCache, SaysWhenMoreMayFit) {
  PrefixCache cache(10);
  const auto tokens = counting(40);
  auto pages = admit(cache, tokens);
  const std::uint64_t before = cache.gains();
  std::vector<std::int32_t> own = {cache.take()};
  std::vector<std::int32_t> shared;
  cache.share(kRoot, tokens, found(cache, tokens), shared);
  EXPECT_EQ(cache.gains(), before) << "there is less room, and no more is found";
  cache.release(own, 0);
  EXPECT_GT(cache.gains(), before) << "there is more room";
  const std::uint64_t released = cache.gains();
  cache.release(shared, 32);
  admit(cache, counting(40, 1000));
  EXPECT_GT(cache.gains(), released) << "more is found";
}

}  // namespace
}  // namespace ptrt
