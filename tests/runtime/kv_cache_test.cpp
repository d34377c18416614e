#include "runtime/model/kv_cache.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <vector>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

TEST(PageAllocator, HandsOutEveryPageOnce) {
  PageAllocator allocator(5);
  std::vector<std::int32_t> pages;
  while (allocator.free() > 0) pages.push_back(allocator.take());
  EXPECT_EQ(std::set<std::int32_t>(pages.begin(), pages.end()), (std::set<std::int32_t>{0, 1, 2, 3, 4}));
  EXPECT_THROW(allocator.take(), Error);
  for (const std::int32_t page : pages) allocator.give_back(page);
  EXPECT_EQ(allocator.free(), 5);
  EXPECT_EQ(allocator.take(), pages.back()) << "the one that came back last";
}

}  // namespace
}  // namespace ptrt
