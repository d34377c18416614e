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

void NgramDrafter::propose(std::span<const std::int32_t> tokens, std::int64_t /*prompt_tokens*/,
                           std::int64_t most, std::vector<std::int32_t>& drafts) {
  drafts.clear();
  NgramIndex::Match match;
  if (!index_.find(tokens, match)) return;
  place_ = match.place;
  const std::int64_t count = std::min({most, most_, worthwhile()});
  // A text that repeats itself continues with the drafts themselves.
  for (std::int64_t i = 0; i < count; i++) {
    const std::size_t from = match.next + static_cast<std::size_t>(i);
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
