#include "model_io/tokenizer/huggingface/added_tokens.h"

#include <fmt/format.h>

#include <algorithm>

#include "model_io/text/unicode.h"

namespace ptrt::huggingface {
namespace {

unsigned char byte_of(const AddedToken& token, std::size_t at) {
  return static_cast<unsigned char>(token.content[at]);
}

// Tokens that agree before byte n, by that byte.
struct ByteOrder {
  std::size_t n;
  bool operator()(const AddedToken& token, unsigned char byte) const { return byte_of(token, n) < byte; }
  bool operator()(unsigned char byte, const AddedToken& token) const { return byte < byte_of(token, n); }
};

bool stands_alone(std::string_view text, Span token) {
  std::size_t before = token.begin, behind = token.end;
  return (before == 0 || !is_word(previous_character(text, before))) &&
         (behind == text.size() || !is_word(next_character(text, behind)));
}

// The token with the white space that it includes; the first `taken` bytes of the text belong to
// earlier ones.
Span with_spaces(std::string_view text, Span span, const AddedToken& token, std::size_t taken) {
  for (std::size_t at = span.begin;
       token.strips_left && at > taken && is_whitespace(previous_character(text, at));)
    span.begin = at;
  for (std::size_t at = span.end;
       token.strips_right && at < text.size() && is_whitespace(next_character(text, at));)
    span.end = at;
  return span;
}

}  // namespace

std::vector<AddedToken> read_added_tokens(const Component& tokenizer, std::int64_t vocab_size) {
  std::vector<AddedToken> tokens;
  if (!tokenizer.has("added_tokens")) return tokens;
  for (const Component& entry : tokenizer.children("added_tokens")) {
    entry.allow({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    const std::int64_t id = entry.count("id");
    if (id >= vocab_size)
      entry.fail("id", fmt::format("is {}, beyond the model's vocab_size = {}", id, vocab_size));
    const bool special = entry.flag("special", false);
    tokens.push_back({.content = entry.text("content"),
                      .id = static_cast<std::int32_t>(id),
                      .special = special,
                      .normalized = entry.flag("normalized", !special),
                      .single_word = entry.flag("single_word", false),
                      .strips_left = entry.flag("lstrip", false),
                      .strips_right = entry.flag("rstrip", false)});
  }
  return tokens;
}

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  std::ranges::stable_sort(tokens_, {}, &AddedToken::content);
  const auto same = [](const AddedToken& a, const AddedToken& b) { return a.content == b.content; };
  tokens_.erase(std::unique(tokens_.begin(), tokens_.end(), same), tokens_.end());
  for (std::size_t i = 0, byte = 0; byte <= 256; ++byte) {
    while (i < tokens_.size() && byte_of(tokens_[i], 0) < byte) ++i;
    first_of_byte_.push_back(i);
  }
}

// The longest token that `text` begins with, null where there is none. The tokens that agree with
// the first n bytes of the text stand together; the shortest of them comes first.
const AddedToken* AddedTokenFinder::longest_at(std::string_view text) const {
  const auto first_byte = static_cast<unsigned char>(text[0]);
  auto begin = tokens_.begin() + static_cast<std::ptrdiff_t>(first_of_byte_[first_byte]);
  auto end = tokens_.begin() + static_cast<std::ptrdiff_t>(first_of_byte_[first_byte + 1u]);
  const AddedToken* longest = nullptr;
  for (std::size_t n = 1; begin != end; ++n) {
    if (begin->content.size() == n) longest = &*begin++;
    if (n == text.size()) break;
    const auto next = std::equal_range(begin, end, static_cast<unsigned char>(text[n]), ByteOrder{n});
    begin = next.first;
    end = next.second;
  }
  return longest;
}

std::vector<AddedTokenFinder::Section> AddedTokenFinder::cut(std::string_view text) const {
  std::vector<Section> sections;
  std::size_t taken = 0;  // bytes that lie in sections
  for (std::size_t at = 0; at < text.size();) {
    const AddedToken* token = longest_at(text.substr(at));
    if (token == nullptr) {
      ++at;
      continue;
    }
    const Span found{at, at + token->content.size()};
    at = found.end;
    if (token->single_word && !stands_alone(text, found)) continue;
    const Span span = with_spaces(text, found, *token, taken);
    if (taken < span.begin) sections.push_back({{taken, span.begin}, {}});
    sections.push_back({span, token->id});
    taken = at = span.end;
  }
  if (taken < text.size()) sections.push_back({{taken, text.size()}, {}});
  return sections;
}

}  // namespace ptrt::huggingface
