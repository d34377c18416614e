#include "model_io/tokenizer/huggingface/byte_level.h"

#include <array>

#include "model_io/text/unicode.h"

namespace ptrt::huggingface {
namespace {

constexpr char32_t kFirstSubstitute = 0x100;
constexpr int kSubstitutes = 68;

constexpr bool stands_for_itself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

struct Tables {
  std::array<char32_t, 256> character_of{};
  std::array<int, kFirstSubstitute + kSubstitutes> byte_of{};  // -1: no byte
};

constexpr Tables make_tables() {
  Tables tables;
  for (int& byte : tables.byte_of) byte = -1;
  char32_t substitute = kFirstSubstitute;
  for (int byte = 0; byte < 256; ++byte) {
    const char32_t character = stands_for_itself(byte) ? static_cast<char32_t>(byte) : substitute++;
    tables.character_of[static_cast<std::size_t>(byte)] = character;
    tables.byte_of[character] = byte;
  }
  return tables;
}

constexpr Tables kTables = make_tables();

}  // namespace

std::string bytes_to_characters(std::string_view bytes) {
  std::string characters;
  characters.reserve(bytes.size() + bytes.size() / 4);
  for (const char byte : bytes) {
    const char32_t character = kTables.character_of[static_cast<unsigned char>(byte)];
    if (character < 0x80) {
      characters += static_cast<char>(character);
    } else {  // all of them are below U+0800: two bytes of UTF-8
      characters += static_cast<char>(0xc0 | (character >> 6));
      characters += static_cast<char>(0x80 | (character & 0x3f));
    }
  }
  return characters;
}

std::string characters_to_bytes(std::string_view token) {
  std::string bytes;
  for (std::size_t at = 0; at < token.size();) {
    const char32_t character = next_character(token, at);
    const int byte = character < kTables.byte_of.size() ? kTables.byte_of[character] : -1;
    if (byte < 0) return std::string(token);
    bytes += static_cast<char>(byte);
  }
  return bytes;
}

}  // namespace ptrt::huggingface
