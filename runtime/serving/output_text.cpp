#include "runtime/serving/output_text.h"

#include <algorithm>

namespace ptrt {

bool OutputText::append(std::int32_t token) {
  if (tokenizer_ == nullptr) return false;
  const std::string piece = tokenizer_->token_bytes(token);
  const std::size_t before = bytes_.size();
  bytes_ += piece;
  std::size_t first_match = std::string::npos;
  for (const std::string& stop : stop_) {
    // A new match must end in the new piece.
    const std::size_t from = before + 1 > stop.size() ? before + 1 - stop.size() : 0;
    first_match = std::min(first_match, bytes_.find(stop, from));
  }
  if (first_match == std::string::npos) return false;
  bytes_.resize(first_match);
  return true;
}

}  // namespace ptrt
