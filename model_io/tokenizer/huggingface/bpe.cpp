#include "model_io/tokenizer/huggingface/bpe.h"

#include <nlohmann/json.hpp>
#include <queue>
#include <utility>

#include "kernels/base/error.h"
#include "model_io/config/strict_json.h"
#include "model_io/text/unicode.h"

namespace ptrt::huggingface {
namespace {

using nlohmann::json;

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

std::string text_or_none(const Component& model, std::string_view key) {
  return model.has(key) ? model.text(key) : std::string();
}

// A merge is written "left right" or ["left", "right"].
std::pair<std::string, std::string> read_merge(const Component& model, std::size_t index, const json& item) {
  if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string())
    return {item[0].get<std::string>(), item[1].get<std::string>()};
  if (item.is_string()) {
    const auto& text = item.get_ref<const std::string&>();
    const std::size_t space = text.find(' ');
    if (space != text.npos && text.find(' ', space + 1) == text.npos)
      return {text.substr(0, space), text.substr(space + 1)};
  }
  model.fail_type(fmt::format("merges[{}]", index), "two tokens with a space between", item);
}

}  // namespace

Bpe::Bpe(const Component& model, std::int64_t vocab_size)
    : byte_fallback_(model.flag("byte_fallback", false)),
      fuse_unknown_(model.flag("fuse_unk", false)),
      ignore_merges_(model.flag("ignore_merges", false)),
      unknown_token_(text_or_none(model, "unk_token")) {
  model.allow({"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
               "byte_fallback", "ignore_merges", "vocab", "merges"});
  if (model.has("dropout") && model.value("dropout") != 0) model.note_unsupported("model.dropout");
  for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (!text_or_none(model, key).empty()) model.note_unsupported(fmt::format("model.{}", key));
  read_vocabulary(model, vocab_size);
  read_merges(model);
  unknown_id_ = id_of(unknown_token_);
  for (std::size_t byte = 0; byte < byte_ids_.size(); ++byte)
    byte_ids_[byte] = id_of(fmt::format("<0x{:02X}>", byte)).value_or(-1);
}

void Bpe::read_vocabulary(const Component& model, std::int64_t vocab_size) {
  const json& vocabulary = model.value("vocab");
  if (!vocabulary.is_object()) model.fail_type("vocab", "an object", vocabulary);
  ids_.reserve(vocabulary.size());
  tokens_.reserve(vocabulary.size());
  const Component entries = model.child("vocab");
  for (const auto& [token, item] : vocabulary.items()) {
    const std::int64_t id = entries.count(token);
    if (id >= vocab_size)
      model.fail("vocab", fmt::format("gives {} the id {}, beyond the model's vocab_size = {}", shown(token),
                                      id, vocab_size));
    const auto [first, is_new] = tokens_.emplace(static_cast<std::int32_t>(id), token);
    if (!is_new)
      model.fail("vocab",
                 fmt::format("gives both {} and {} the id {}", shown(first->second), shown(token), id));
    ids_.emplace(token, static_cast<std::int32_t>(id));
  }
}

std::int32_t Bpe::id_of_merged(const Component& model, std::size_t index, const std::string& token) const {
  const auto id = id_of(token);
  if (!id)
    model.fail(fmt::format("merges[{}]", index),
               fmt::format("needs {}, which the vocabulary does not have", shown(token)));
  return *id;
}

void Bpe::read_merges(const Component& model) {
  const json& items = model.value("merges");
  if (!items.is_array()) model.fail_type("merges", "an array", items);
  if (items.size() > INT32_MAX) model.fail("merges", "has too many entries");
  merges_.reserve(items.size());
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (items[i].is_string() && items[i].get_ref<const std::string&>().starts_with("#version")) continue;
    const auto [left, right] = read_merge(model, i, items[i]);
    const std::uint64_t key = pair_key(id_of_merged(model, i, left), id_of_merged(model, i, right));
    merges_[key] = {static_cast<std::int32_t>(i), id_of_merged(model, i, left + right)};
  }
}

std::optional<std::int32_t> Bpe::id_of(std::string_view token) const {
  const auto found = ids_.find(token);
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

void Bpe::encode(std::string_view word, std::vector<std::int32_t>& ids) const {
  if (ignore_merges_)
    if (const auto id = id_of(word)) {
      ids.push_back(*id);
      return;
    }
  std::vector<Symbol> symbols = characters_of(word);
  merge_all(symbols);
  for (const Symbol& symbol : symbols)
    if (!symbol.dead) ids.push_back(symbol.id);
}

// A character that is no token becomes its bytes, or the unknown token, or nothing.
std::vector<Bpe::Symbol> Bpe::characters_of(std::string_view word) const {
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  bool after_unknown = false;
  for (std::size_t at = 0; at < word.size();) {
    const std::size_t begin = at;
    next_character(word, at);
    const std::string_view character = word.substr(begin, at - begin);
    const auto id = id_of(character);
    const bool known = id || (byte_fallback_ && append_bytes(character, symbols));
    if (id)
      symbols.push_back({*id, 0, 0});
    else if (!known && !unknown_token_.empty() && !(after_unknown && fuse_unknown_)) {
      if (!unknown_id_)
        throw_bad_input(
            "the tokenizer has no token for \"{}\": its unknown token \"{}\" is not in its vocabulary",
            character, unknown_token_);
      symbols.push_back({*unknown_id_, 0, 0});
    }
    after_unknown = !known;
  }
  const auto count = static_cast<std::int32_t>(symbols.size());
  for (std::int32_t i = 0; i < count; ++i) {
    symbols[static_cast<std::size_t>(i)].previous = i - 1;
    symbols[static_cast<std::size_t>(i)].next = i + 1 < count ? i + 1 : -1;
  }
  return symbols;
}

// False, and nothing appended, when one of the bytes is no token.
bool Bpe::append_bytes(std::string_view character, std::vector<Symbol>& symbols) const {
  const std::size_t before = symbols.size();
  for (const char byte : character) {
    const std::int32_t id = byte_ids_[static_cast<unsigned char>(byte)];
    if (id < 0) {
      symbols.resize(before);
      return false;
    }
    symbols.push_back({id, 0, 0});
  }
  return true;
}

// The merge of a symbol with the one after it; null when there is none.
const Bpe::Merge* Bpe::merge_of(const std::vector<Symbol>& symbols, std::int32_t left) const {
  const Symbol& symbol = symbols[static_cast<std::size_t>(left)];
  if (symbol.next < 0) return nullptr;
  const auto found = merges_.find(pair_key(symbol.id, symbols[static_cast<std::size_t>(symbol.next)].id));
  return found == merges_.end() ? nullptr : &found->second;
}

// A merge that waits for its turn: the lowest rank first, of equal ones the leftmost.
struct Bpe::Candidate {
  std::int32_t rank, left;
  bool operator<(const Candidate& other) const {  // the queue takes the largest first
    return rank != other.rank ? rank > other.rank : left > other.left;
  }
};

void Bpe::merge_all(std::vector<Symbol>& symbols) const {
  std::vector<Candidate> first;
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(symbols.size()); ++i)
    if (const Merge* merge = merge_of(symbols, i)) first.push_back({merge->rank, i});
  std::priority_queue<Candidate> queue({}, std::move(first));
  const auto at = [&](std::int32_t i) -> Symbol& { return symbols[static_cast<std::size_t>(i)]; };
  const auto wait = [&](std::int32_t left) {
    if (left < 0) return;
    if (const Merge* merge = merge_of(symbols, left)) queue.push({merge->rank, left});
  };
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = at(top.left);
    if (left.dead) continue;
    const Merge* merge = merge_of(symbols, top.left);
    if (merge == nullptr || merge->rank != top.rank) continue;  // one of the two has merged with another
    Symbol& right = at(left.next);
    right.dead = true;
    left.id = merge->result;
    left.next = right.next;
    if (left.next >= 0) at(left.next).previous = top.left;
    wait(left.previous);
    wait(top.left);
  }
}

}  // namespace ptrt::huggingface
