#include "runtime/model/vocab_head.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace ptrt {
namespace {

TEST(VocabHead, RowsOfRanksCoverTheVocabularyOnce) {
  for (const std::int64_t vocab : {16, 259, 1000, 32000})
    for (const std::int64_t ranks : {2, 3, 8, 16}) {
      std::int64_t next = 0;
      for (std::int64_t rank = 0; rank < ranks; rank++) {
        const HeadRows rows = head_rows_of(vocab, ranks, rank);
        EXPECT_EQ(rows.first, next);
        EXPECT_GE(rows.count, 1);
        next += rows.count;
      }
      EXPECT_EQ(next, vocab);
    }
}

TEST(VocabHead, StaysWholeWhereARankWouldHaveNothing) {
  EXPECT_EQ(head_rows_of(32000, 1, 0).count, 0);
  EXPECT_EQ(head_rows_of(10, 8, 0).count, 0) << "two rows a rank leave none for the last three";
  EXPECT_EQ(head_rows_of(3, 4, 0).count, 0);
}

}  // namespace
}  // namespace ptrt
