#include "runtime/speculate/oracle_drafter.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/requests/request.h"

namespace ptrt {
namespace {

class OracleDrafter final : public Drafter {
 public:
  OracleDrafter(std::int64_t line, const std::vector<std::int32_t>& output, std::int64_t drafts,
                double acceptance, std::int64_t vocab_size)
      : line_(line), output_(output), drafts_(drafts), acceptance_(acceptance), vocab_size_(vocab_size) {}

  void propose(std::span<const std::int32_t> tokens, std::int64_t prompt_tokens, std::int64_t most,
               std::vector<std::int32_t>& drafts) override {
    drafts.clear();
    const std::int64_t from = std::ssize(tokens) - prompt_tokens;
    const std::int64_t end = std::min(from + std::min(most, drafts_), std::ssize(output_));
    for (std::int64_t i = from; i < end; i++) drafts.push_back(draft_of(i));
  }
  void learn(std::int64_t, std::int64_t) override {}

 private:
  std::int32_t draft_of(std::int64_t i) const {
    const std::int32_t right = output_[static_cast<std::size_t>(i)];
    if (uniform(i) < acceptance_) return right;
    return static_cast<std::int32_t>((right + 1) % vocab_size_);
  }
  // [0, 1)
  double uniform(std::int64_t i) const {
    std::uint64_t z =
        static_cast<std::uint64_t>(line_) * 0x9e3779b97f4a7c15ull + static_cast<std::uint64_t>(i);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return static_cast<double>((z ^ (z >> 31)) >> 11) / 9007199254740992.0;
  }

  std::int64_t line_;
  const std::vector<std::int32_t>& output_;
  std::int64_t drafts_;
  double acceptance_;
  std::int64_t vocab_size_;
};

}  // namespace

DrafterFactory make_oracle_drafters(std::shared_ptr<const KnownOutputs> known, std::int64_t drafts,
                                    double acceptance, std::int64_t vocab_size) {
  PTRT_CHECK(known != nullptr && 1 <= drafts && drafts <= kMaxDrafts && vocab_size > 1);
  return [known = std::move(known), drafts, acceptance,
          vocab_size](const Request& request) -> std::unique_ptr<Drafter> {
    const auto output = known->find(request.line);
    if (output == known->end()) return nullptr;
    return std::make_unique<OracleDrafter>(request.line, output->second, drafts, acceptance, vocab_size);
  };
}

}  // namespace ptrt
