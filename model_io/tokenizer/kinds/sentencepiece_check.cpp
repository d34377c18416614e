#include "model_io/tokenizer/kinds/sentencepiece_check.h"

#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>

static_assert(std::endian::native == std::endian::little, "sentencepiece's tables are little-endian");

namespace ptrt {
namespace {

// Of sentencepiece_model.proto.
constexpr std::uint64_t kNormalizerSpec = 3, kDenormalizerSpec = 5, kPrecompiledCharsmap = 2;

std::optional<std::uint64_t> take_varint(std::string_view& bytes) {
  std::uint64_t value = 0;
  for (unsigned shift = 0; shift < 64 && !bytes.empty(); shift += 7) {
    const auto byte = static_cast<unsigned char>(bytes.front());
    bytes.remove_prefix(1);
    value |= std::uint64_t{byte & 0x7fu} << shift;
    if (byte < 0x80) return value;
  }
  return {};
}

// Calls take(number, bytes) for every field of bytes, up to where the message is broken.
template <typename Take>
void for_each_field(std::string_view message, const Take& take) {
  while (!message.empty()) {
    const auto tag = take_varint(message);
    if (!tag) return;
    std::uint64_t length = 0;
    switch (*tag & 7) {
      case 0:
        if (!take_varint(message)) return;
        continue;
      case 1:
        length = 8;
        break;
      case 2: {
        const auto stored = take_varint(message);
        if (!stored) return;
        length = *stored;
        break;
      }
      case 3:  // a group's begin and end: its fields follow as any others
      case 4:
        continue;
      case 5:
        length = 4;
        break;
      default:
        return;
    }
    if (length > message.size()) return;
    if ((*tag & 7) == 2) take(*tag >> 3, message.substr(0, length));
    message.remove_prefix(length);
  }
}

// The table is the size of a trie in bytes, the trie, and texts that end in NUL. The trie is a double array of Darts-clone:
// the child of the unit at i by a byte is at i ^ offset ^ byte, and a value is the place of a text.
bool is_sound_charsmap(std::string_view table) {
  if (table.empty()) return true;
  std::uint32_t trie_bytes = 0;
  if (table.size() <= sizeof(trie_bytes)) return false;
  std::memcpy(&trie_bytes, table.data(), sizeof(trie_bytes));
  table.remove_prefix(sizeof(trie_bytes));
  if (trie_bytes == 0 || trie_bytes % sizeof(std::uint32_t) != 0 || trie_bytes >= table.size()) return false;
  const std::string_view texts = table.substr(trie_bytes);
  const std::size_t units = trie_bytes / sizeof(std::uint32_t);
  const auto unit_at = [&](std::size_t i) {
    std::uint32_t unit = 0;
    std::memcpy(&unit, table.data() + i * sizeof(unit), sizeof(unit));
    return unit;
  };
  const auto has_text = [&](std::uint32_t unit) { return (unit & 0x7fffffffu) < texts.size(); };
  for (std::size_t i = 0; i < units; ++i) {
    const std::uint32_t unit = unit_at(i);
    const bool is_value = (unit >> 31) != 0, has_leaf = (unit & 0x100u) != 0;
    if (is_value && !has_text(unit)) return false;
    if (is_value && i > 0) continue;  // a walk begins at the first, whatever it is
    const std::size_t children = i ^ (std::size_t{unit >> 10} << ((unit & 0x200u) >> 6));
    if ((children | 0xffu) >= units || (has_leaf && !has_text(unit_at(children)))) return false;
  }
  return texts.back() == '\0';
}

}  // namespace

std::string problem_of_sentencepiece_model(std::string_view model) {
  std::string problem;
  for_each_field(model, [&](std::uint64_t number, std::string_view spec) {
    if (number != kNormalizerSpec && number != kDenormalizerSpec) return;
    for_each_field(spec, [&](std::uint64_t key, std::string_view table) {
      if (key == kPrecompiledCharsmap && !is_sound_charsmap(table))
        problem = "its table of character replacements (precompiled_charsmap) is damaged";
    });
  });
  return problem;
}

}  // namespace ptrt
