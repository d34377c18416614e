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
  allocator.give_back(pages);
  EXPECT_EQ(allocator.free(), 5);
  EXPECT_TRUE(pages.empty());
}

}  // namespace
}  // namespace ptrt
