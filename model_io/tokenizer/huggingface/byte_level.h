// Byte-level tokenizers write each byte as a character that can be seen (GPT-2's table): "!" … "~"
// and most of Latin-1 stand for themselves, the other 68 bytes for U+0100 … U+0143 in their order.
#pragma once

#include <string>
#include <string_view>

namespace ptrt::huggingface {

std::string bytes_to_characters(std::string_view bytes);
// The token as it is where it holds a character that stands for no byte.
std::string characters_to_bytes(std::string_view token);

}  // namespace ptrt::huggingface
