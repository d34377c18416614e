#include "model_io/text/regex.h"

#include <oniguruma.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <utility>

#include "kernels/base/error.h"
#include "model_io/config/strict_json.h"
#include "model_io/text/unicode.h"

namespace ptrt {
namespace {

// Bounds against patterns that backtrack without end. Oniguruma limits the retries of one search.
// So each search first gets a few; one that needs more is repeated with ten times as many, out of a
// budget that all searches of a text share. The usual patterns need fewer than the first number.
constexpr std::uint64_t kFirstRetries = 200;
constexpr std::uint64_t kBudget = 100'000'000, kBudgetPerByte = 500;
// Places that a search may keep to go back to; the usual patterns keep one a character of a word.
constexpr unsigned kMaxPlaces = 1 << 23;

const OnigUChar* bytes_of(std::string_view text) {
  return reinterpret_cast<const OnigUChar*>(text.data());
}

std::string message_of(int code, OnigErrorInfo* info = nullptr) {
  OnigUChar message[ONIG_MAX_ERROR_MESSAGE_LEN];
  const int length =
      info != nullptr ? onig_error_code_to_str(message, code, info) : onig_error_code_to_str(message, code);
  return {reinterpret_cast<const char*>(message), static_cast<std::size_t>(length)};
}

// The state of one thread's searches in one text.
class Searcher {
 public:
  Searcher(regex_t* regex, std::string_view text)
      : regex_(regex),
        text_(text),
        region_(onig_region_new()),
        limits_(onig_new_match_param()),
        budget_(kBudget + kBudgetPerByte * text.size()) {
    PTRT_CHECK(region_ != nullptr && limits_ != nullptr);
    onig_set_match_stack_limit_size_of_match_param(limits_.get(), kMaxPlaces);
  }

  // The first match from `at` on: its place, ONIG_MISMATCH or an error code.
  int find(std::size_t at) {
    std::uint64_t retries = kFirstRetries;
    for (;;) {
      const int found = find(at, retries);
      if (found != ONIGERR_RETRY_LIMIT_IN_MATCH_OVER && found != ONIGERR_RETRY_LIMIT_IN_SEARCH_OVER)
        return found;
      retries *= 10;
      if (retries > budget_) return found;
      budget_ -= retries;
    }
  }
  Span match() const {
    return {static_cast<std::size_t>(region_->beg[0]), static_cast<std::size_t>(region_->end[0])};
  }

 private:
  int find(std::size_t at, std::uint64_t retries) {
    onig_set_retry_limit_in_match_of_match_param(limits_.get(), retries);
    onig_set_retry_limit_in_search_of_match_param(limits_.get(), retries);
    const OnigUChar *begin = bytes_of(text_), *end = begin + text_.size();
    return onig_search_with_param(regex_, begin, end, begin + at, end, region_.get(), ONIG_OPTION_NONE,
                                  limits_.get());
  }

  struct Free {
    void operator()(OnigRegion* region) const { onig_region_free(region, 1); }
    void operator()(OnigMatchParam* limits) const { onig_free_match_param(limits); }
  };

  regex_t* regex_;
  std::string_view text_;
  std::unique_ptr<OnigRegion, Free> region_;
  std::unique_ptr<OnigMatchParam, Free> limits_;
  std::uint64_t budget_;
};

}  // namespace

struct Regex::Compiled {
  regex_t* regex = nullptr;

  Compiled() = default;
  Compiled(const Compiled&) = delete;
  Compiled& operator=(const Compiled&) = delete;
  ~Compiled() {
    if (regex != nullptr) onig_free(regex);
  }
};

Regex::Regex(std::string pattern) : pattern_(std::move(pattern)) {
  static const int initialized = [] {
    OnigEncoding encodings[] = {ONIG_ENCODING_UTF8};
    return onig_initialize(encodings, 1);
  }();
  PTRT_CHECK(initialized == ONIG_NORMAL);
  auto compiled = std::make_shared<Compiled>();
  OnigErrorInfo info;
  // The tokenizers library uses this syntax too.
  const int code = onig_new(&compiled->regex, bytes_of(pattern_), bytes_of(pattern_) + pattern_.size(),
                            ONIG_OPTION_NONE, ONIG_ENCODING_UTF8, ONIG_SYNTAX_ONIGURUMA, &info);
  if (code != ONIG_NORMAL) error_ = message_of(code, &info);
  compiled_ = std::move(compiled);
}

std::vector<Span> Regex::find_all(std::string_view text) const {
  PTRT_CHECK(compiled_->regex != nullptr);
  check_text_length(text);
  std::vector<Span> matches;
  if (!ONIGENC_IS_VALID_MBC_STRING(ONIG_ENCODING_UTF8, bytes_of(text), bytes_of(text) + text.size()))
    return matches;
  Searcher searcher(compiled_->regex, text);
  std::size_t at = 0, last_end = std::string_view::npos;
  while (at <= text.size()) {
    const int found = searcher.find(at);
    if (found == ONIG_MISMATCH) break;
    if (found < 0)
      throw_bad_input("the tokenizer's regular expression {} gave up on a text of {} bytes: {}",
                      shown(pattern_), text.size(), message_of(found));
    const Span match = searcher.match();
    if (match.begin < at || match.end < match.begin)  // \K within a look-around
      throw_bad_input("the tokenizer's regular expression {} matches backwards", shown(pattern_));
    if (match.begin == match.end && match.begin == last_end) {
      if (at == text.size()) break;
      next_character(text, at);
      continue;
    }
    matches.push_back(match);
    at = last_end = match.end;
  }
  return matches;
}

}  // namespace ptrt
