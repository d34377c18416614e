#include "runtime/speculate/ngram_drafter.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

// A draft pays where it is right at least this often: a row more costs about so much of a step that reads all
// weights and meets other ranks.
constexpr double kWorth = 0.25;
constexpr double kMemory = 0.2;      // weight of the latest draft in the estimate
constexpr double kMostRight = 0.98;  // so that a few wrong drafts are noticed
constexpr std::int64_t kLongestPause = 128;

}  // namespace

// Drafts while the last of them is likely enough to be reached and right.
std::int64_t NgramDrafter::worthwhile() {
  const double right = right_[place_];
  Pause& pause = pauses_[place_];
  std::int64_t count = 0;
  for (double reached = right; reached >= kWorth && count < most_; reached *= right) count++;
  if (count > 0) return count;
  if (pause.left == 0) {
    pause.left = pause.next;
    pause.next = std::min(2 * pause.next, kLongestPause);
  }
  return --pause.left == 0 ? 1 : 0;
}

// A long match is the best source. A short one may be chance: then the copied text goes before it, if it was right as often.
bool NgramDrafter::choose(std::span<const std::int32_t> tokens) {
  NgramIndex::Match match;
  const bool found = index_.find(tokens, match);
  const std::size_t copied = copied_.exists() ? copied_.next_at(tokens.size()) : tokens.size();
  const bool follows = copied < tokens.size() && copied != match.next &&
                       (!found || (match.place > 0 && right_[kCopied] >= right_[match.place]));
  if (!found && !follows) return false;
  place_ = follows ? kCopied : match.place;
  proposed_ = {follows ? copied : match.next, tokens.size()};
  return true;
}

void NgramDrafter::propose(std::span<const std::int32_t> tokens, std::int64_t /*prompt_tokens*/,
                           std::int64_t most, std::vector<std::int32_t>& drafts) {
  drafts.clear();
  if (!choose(tokens)) return;
  const std::int64_t count = std::min({most, most_, worthwhile()});
  // A text that repeats itself continues with the drafts themselves.
  for (std::int64_t i = 0; i < count; i++) {
    const std::size_t from = proposed_.next + static_cast<std::size_t>(i);
    drafts.push_back(from < tokens.size() ? tokens[from] : drafts[from - tokens.size()]);
  }
}

void NgramDrafter::learn(std::int64_t verified, std::int64_t accepted) {
  PTRT_CHECK(0 <= accepted && accepted <= verified);
  double& right = right_[place_];
  for (std::int64_t i = 0; i < std::min(accepted + 1, verified); i++)
    right += kMemory * ((i < accepted ? 1.0 : 0.0) - right);
  right = std::min(right, kMostRight);
  if (accepted > 0) {
    copied_ = proposed_;
    // A draft that was tried after a pause and is right ends it.
    right = std::max(right, kWorth);
    pauses_[place_] = {};
  }
}

DrafterFactory make_ngram_drafters(std::int64_t most) {
  PTRT_CHECK(1 <= most && most <= kMaxDrafts);
  return [most](const Request&) { return std::make_unique<NgramDrafter>(most); };
}

}  // namespace ptrt
