// The texts of a vocabulary in the order of their bytes, so that what tokens begin with is walked once for all.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model_io/tokenizer/tokenizer.h"

namespace ptrt {

class TokenTexts {
 public:
  // Tokens without bytes (special ones) are left out.
  TokenTexts(const Tokenizer& tokenizer, std::int64_t vocab_size);

  struct Entry {
    std::int32_t token = 0;
    std::uint32_t shared = 0;  // bytes that it begins with as the entry before it
    std::uint32_t begin = 0, size = 0;
  };
  const std::vector<Entry>& entries() const { return entries_; }
  std::string_view text(const Entry& entry) const { return {bytes_.data() + entry.begin, entry.size}; }
  // Of any token; "" for those left out.
  std::string_view text_of(std::int32_t token) const {
    const std::int32_t entry = entry_of_[static_cast<std::size_t>(token)];
    return entry < 0 ? std::string_view() : text(entries_[static_cast<std::size_t>(entry)]);
  }

 private:
  std::string bytes_;
  std::vector<Entry> entries_;
  std::vector<std::int32_t> entry_of_;  // each token; -1: none
};

}  // namespace ptrt
