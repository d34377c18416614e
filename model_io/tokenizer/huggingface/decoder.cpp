#include "model_io/tokenizer/huggingface/decoder.h"

#include <charconv>
#include <utility>

#include "model_io/tokenizer/huggingface/byte_level.h"
#include "model_io/tokenizer/huggingface/pattern.h"
#include "model_io/tokenizer/huggingface/pre_tokenizer.h"

namespace ptrt::huggingface {
namespace {

// "<0x0A>" is the byte 0x0A; every other token stays.
std::string byte_fallback(std::string token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return token;
  unsigned byte = 0;
  const char *digits = token.data() + 3, *end = digits + 2;
  const auto [stop, problem] = std::from_chars(digits, end, byte, 16);
  if (problem != std::errc() || stop != end) return token;
  return {static_cast<char>(byte)};
}

std::string strip(std::string token, const std::string& character, std::int64_t start, std::int64_t stop) {
  for (; start > 0 && token.starts_with(character); --start) token.erase(0, character.size());
  for (; stop > 0 && token.ends_with(character); --stop) token.resize(token.size() - character.size());
  return token;
}

}  // namespace

void Decoder::add(const Component& component) {
  const std::string type = component.type();
  if (type == "Sequence") {
    component.allow({"decoders"});
    for (const Component& step : component.children("decoders")) add(step);
    return;
  }
  if (type == "Strip") {
    add_strip(component);
    return;
  }
  if (joined_ && type != "Fuse") {
    component.note_unsupported(component.path() + " after the joining of all tokens");
    return;
  }
  if (type == "ByteLevel") {
    component.allow({"add_prefix_space", "trim_offsets", "use_regex"});
    steps_.push_back([](const std::string& token) { return characters_to_bytes(token); });
    joined_ = true;
  } else if (type == "Fuse") {
    component.allow({});
    joined_ = true;
  } else if (type == "ByteFallback") {
    component.allow({});
    steps_.push_back(byte_fallback);
  } else if (type == "Replace") {
    component.allow({"pattern", "content"});
    steps_.push_back([pattern = read_pattern(component), content = component.text("content")](
                         const std::string& token) { return replace_all(token, pattern, content); });
  } else if (type == "Metaspace") {
    component.allow({"replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"});
    steps_.push_back([mark = Pattern(read_character(component, "replacement"))](const std::string& token) {
      return replace_all(token, mark, " ");
    });
  } else {
    component.note_unsupported_type();
  }
}

void Decoder::add_strip(const Component& component) {
  component.allow({"content", "start", "stop"});
  const std::string character = read_character(component, "content");
  const std::int64_t start = component.count("start"), stop = component.count("stop");
  if (!joined_)
    steps_.push_back([=](std::string token) { return strip(std::move(token), character, start, stop); });
  else if (stop > 0)  // the end of the text is not known while it grows
    component.note_unsupported(component.path() + " at the end of the text");
}

std::string Decoder::bytes_of(std::string token) const {
  for (const Step& step : steps_) token = step(std::move(token));
  return token;
}

}  // namespace ptrt::huggingface
