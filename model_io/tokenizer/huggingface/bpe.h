// Byte pair encoding: a word is split into characters. Then the pair of neighbours that comes first
// in the list of merges becomes one token, until no pair of the list is left.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model_io/tokenizer/huggingface/component.h"

namespace ptrt::huggingface {

class Bpe {
 public:
  // Reads the vocabulary and merges of a tokenizer.json's "model", whose type is BPE. Every id must
  // be below `vocab_size`, the model's.
  Bpe(const Component& model, std::int64_t vocab_size);

  // Appends the ids of a word. Throws bad_input when a character needs an unknown token that is not
  // there.
  void encode(std::string_view word, std::vector<std::int32_t>& ids) const;

  const std::unordered_map<std::int32_t, std::string>& tokens() const { return tokens_; }
  std::optional<std::int32_t> id_of(std::string_view token) const;
  const std::string& unknown_token() const { return unknown_token_; }  // "" where there is none

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  struct Merge {
    std::int32_t rank;    // its place in the list
    std::int32_t result;  // the token that the two become
  };
  // A token of a word in a list that merges shorten; the right one of two merged is dead.
  struct Symbol {
    std::int32_t id;
    std::int32_t previous, next;  // -1: none
    bool dead = false;
  };
  struct Candidate;

  void read_vocabulary(const Component& model, std::int64_t vocab_size);
  void read_merges(const Component& model);
  std::int32_t id_of_merged(const Component& model, std::size_t index, const std::string& token) const;
  std::vector<Symbol> characters_of(std::string_view word) const;
  bool append_bytes(std::string_view character, std::vector<Symbol>& symbols) const;
  const Merge* merge_of(const std::vector<Symbol>& symbols, std::int32_t left) const;
  void merge_all(std::vector<Symbol>& symbols) const;

  bool byte_fallback_, fuse_unknown_, ignore_merges_;
  std::string unknown_token_;
  std::optional<std::int32_t> unknown_id_;
  std::unordered_map<std::string, std::int32_t, Hash, std::equal_to<>> ids_;
  std::unordered_map<std::int32_t, std::string> tokens_;
  std::array<std::int32_t, 256> byte_ids_{};         // of "<0x00>" …; -1: not in the vocabulary
  std::unordered_map<std::uint64_t, Merge> merges_;  // by left id << 32 | right id
};

}  // namespace ptrt::huggingface
