#include "runtime/grammar/token_texts.h"

#include <algorithm>

namespace ptrt {

TokenTexts::TokenTexts(const Tokenizer& tokenizer, std::int64_t vocab_size) {
  for (std::int32_t token = 0; token < vocab_size; token++) {
    const std::string bytes = tokenizer.token_bytes(token);
    if (bytes.empty()) continue;
    entries_.push_back(
        {token, 0, static_cast<std::uint32_t>(bytes_.size()), static_cast<std::uint32_t>(bytes.size())});
    bytes_ += bytes;
  }
  std::ranges::stable_sort(entries_, {}, [this](const Entry& entry) { return text(entry); });
  entry_of_.assign(static_cast<std::size_t>(vocab_size), -1);
  for (std::size_t i = 0; i < entries_.size(); i++)
    entry_of_[static_cast<std::size_t>(entries_[i].token)] = static_cast<std::int32_t>(i);
  for (std::size_t i = 1; i < entries_.size(); i++) {
    const std::string_view before = text(entries_[i - 1]), here = text(entries_[i]);
    const auto differ = std::ranges::mismatch(before, here);
    entries_[i].shared = static_cast<std::uint32_t>(differ.in2 - here.begin());
  }
}

}  // namespace ptrt
