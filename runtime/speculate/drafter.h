// Who proposes the tokens that a sequence may continue with. A step verifies them: a draft is kept where the token that
// is sampled in its place equals it. Drafts therefore change no result, only the number of steps. Every rank of a
// replica must get the same drafts: a drafter is a function of its calls alone.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

namespace ptrt {

struct Request;

// Most drafts of a sequence in a step.
inline constexpr std::int64_t kMaxDrafts = 31;

// Of one sequence.
class Drafter {
 public:
  Drafter() = default;
  Drafter(const Drafter&) = delete;
  Drafter& operator=(const Drafter&) = delete;
  virtual ~Drafter() = default;

  // Replaces `drafts` by up to `most` tokens that may follow `tokens`, prompt and output so far, which begin with
  // those of the call before. `prompt_tokens` of them are the prompt's.
  virtual void propose(std::span<const std::int32_t> tokens, std::int64_t prompt_tokens, std::int64_t most,
                       std::vector<std::int32_t>& drafts) = 0;
  // What became of them, unless the sequence ended: the first `accepted` of `verified`, some of the last proposal.
  virtual void learn(std::int64_t verified, std::int64_t accepted) = 0;
};

// Makes the drafter of a request's sequence; null: there are no drafts.
using DrafterFactory = std::function<std::unique_ptr<Drafter>(const Request&)>;

}  // namespace ptrt
