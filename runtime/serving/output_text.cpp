#include "runtime/serving/output_text.h"

#include <algorithm>

namespace ptrt {

bool OutputText::append(std::int32_t token, bool may_stop) {
  if (tokenizer_ == nullptr) return false;
  const std::string piece = tokenizer_->token_bytes(token);
  const std::size_t before = bytes_.size();
  bytes_ += piece;
  if (!may_stop) return false;
  std::size_t first_match = std::string::npos, end = std::string::npos;
  for (const std::string& stop : stop_) {
    // A new match must end in the new piece.
    const std::size_t from = before + 1 > stop.size() ? before + 1 - stop.size() : 0;
    const std::size_t match = bytes_.find(stop, from);
    if (match >= first_match) continue;
    first_match = match;
    end = includes_stop_ ? match + stop.size() : match;
  }
  if (first_match == std::string::npos) return false;
  bytes_.resize(end);
  return true;
}

}  // namespace ptrt
