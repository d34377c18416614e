// Drafts by prompt lookup: what followed the last tokens where they occurred before, in the prompt or the output. Where
// right drafts came from, further ones are taken although a token between was another: text that is copied with edits goes
// on behind each. The number of drafts follows from how often those of this sequence were right.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "runtime/speculate/drafter.h"
#include "runtime/speculate/ngram_index.h"

namespace ptrt {

class NgramDrafter final : public Drafter {
 public:
  explicit NgramDrafter(std::int64_t most) : most_(most) {}

  void propose(std::span<const std::int32_t> tokens, std::int64_t prompt_tokens, std::int64_t most,
               std::vector<std::int32_t>& drafts) override;
  void learn(std::int64_t verified, std::int64_t accepted) override;

 private:
  // Sources of drafts: the lengths of a match, NgramIndex::kLengths, and the text that is copied.
  static constexpr std::size_t kCopied = NgramIndex::kLengths.size(), kPlaces = kCopied + 1;
  // tokens[next + i] is the draft for tokens[end + i].
  struct Source {
    std::size_t next = 0, end = 0;
    bool exists() const { return end > 0; }
    std::size_t next_at(std::size_t count) const { return next + count - end; }
  };

  bool choose(std::span<const std::int32_t> tokens);
  std::int64_t worthwhile();

  std::int64_t most_;
  NgramIndex index_;
  std::size_t place_ = 0;  // in the last proposal
  Source proposed_;        // likewise
  Source copied_;          // of the last draft that was right
  // Estimated share of drafts that are right, given that those before them are; by place.
  std::array<double, kPlaces> right_ = {0.85, 0.65, 0.5, 0.35, 0.6};
  // Where that share is too low, proposals are passed over, and then one draft is tried again.
  struct Pause {
    std::int64_t left = 0, next = 8;
  };
  std::array<Pause, kPlaces> pauses_ = {};
};

// Up to `most` drafts a sequence and step, for every request.
DrafterFactory make_ngram_drafters(std::int64_t most);

}  // namespace ptrt
