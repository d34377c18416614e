// Decode attention copies pages before it waits for the kernels before: none that these may still write.
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "cuda_emulation/stream.h"
#include "kernels/cuda/cuda_backend.h"

namespace ptrt {
namespace {

constexpr std::int64_t kHeadDim = 16, kContext = 96;

class EarlyCopies : public ::testing::Test {
 protected:
  EarlyCopies() {
    backend_.reserve({.tracks = 1,
                      .rows = 40,
                      .logit_rows = 1,
                      .sequences = 3,
                      .context = kContext,
                      .heads = 2,
                      .head_dim = kHeadDim});
    pool_ = {nullptr, DType::bfloat16, 1, 1, 12, 1, kHeadDim};
    memory_ = backend_.allocate(pool_.bytes(), "pages");
    pool_.data = memory_.get();
  }
  ~EarlyCopies() override { emulation::set_written_before(nullptr, 0); }

  // The kernel before attention writes all of a page.
  void page_is_written(std::int64_t page) {
    emulation::set_written_before(pool_.keys<std::byte>(0, 0, 0, 0) + 2 * page * pool_.page_stride(),
                                  2 * static_cast<std::size_t>(pool_.page_stride()));
  }
  // The error of attention over rows at these positions and slots; empty: none.
  std::string attend(const std::vector<std::int32_t>& positions, const std::vector<std::int32_t>& slots,
                     bool decodes) {
    const StepRows rows{positions, slots, page_table_, kContext / kPageTokens, -1, decodes};
    const auto count = std::ssize(positions);
    const auto allocate = [&] {
      return backend_.allocate(static_cast<std::size_t>(4 * count * kHeadDim), "rows");
    };
    const auto q = allocate(), out = allocate();
    const auto tensor = [&](const auto& data) {
      return Tensor{data.get(), 1, count, 2 * kHeadDim, 2 * count * kHeadDim, DType::bfloat16};
    };
    backend_.set_step_inputs({}, rows);
    backend_.attention({.heads = 2, .kv_heads = 1, .head_dim = kHeadDim}, tensor(q), rows, 0, pool_,
                       tensor(out));
    try {
      backend_.device_groups()->wait();
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  }

  CudaBackend backend_{"host emulation"};
  KvPool pool_;
  std::shared_ptr<std::byte[]> memory_;
  // Slots 0 and 1 share two pages of a prompt.
  std::vector<std::int32_t> page_table_{0, 1, 2, 3, 4, 5, 0, 1, 6, 7, 8, 9, 10, 10, 10, 10, 10, 10};
};

TEST_F(EarlyCopies, OfEarlierStepsAreMadeAndTheEmulationSeesThem) {
  page_is_written(1);
  EXPECT_NE(attend({33}, {0}, true).find("what the kernel before may still write"), std::string::npos);
}

TEST_F(EarlyCopies, NotOfPagesThatRowsOfTheSameSequenceWrite) {
  page_is_written(1);  // by the rows of positions 30 and 31
  EXPECT_EQ(attend({30, 31, 32, 33}, {0, 0, 0, 0}, true), "");
}

TEST_F(EarlyCopies, NotOfAPromptThatTheSameStepFeeds) {
  std::vector<std::int32_t> positions(33), slots(33, 0);
  std::iota(positions.begin(), positions.end(), 0);
  positions.push_back(32);  // of another sequence, which shares the pages
  slots.push_back(1);
  for (const std::int64_t page : {0, 1}) {
    page_is_written(page);
    EXPECT_EQ(attend(positions, slots, false), "") << "page " << page;
  }
}

}  // namespace
}  // namespace ptrt
