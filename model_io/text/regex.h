// Regular expressions of tokenizers, run by Oniguruma, the engine of the tokenizers library.
// regex.cpp is the only source that knows it.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model_io/text/span.h"

namespace ptrt {

class Regex {
 public:
  // Not valid when the engine does not accept the pattern; error() then says why.
  explicit Regex(std::string pattern);

  const std::string& error() const { return error_; }
  // All matches from left to right, none overlapping. Empty matches are included, except right
  // after another match. Text that is not valid UTF-8 has no matches. Throws bad_input when the
  // search takes unreasonably many steps or much memory. Several threads may search at the same
  // time.
  std::vector<Span> find_all(std::string_view text) const;

 private:
  struct Compiled;
  std::string pattern_;
  std::shared_ptr<const Compiled> compiled_;
  std::string error_;
};

}  // namespace ptrt
