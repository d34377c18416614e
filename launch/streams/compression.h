// Compressed files by zlib and libzstd: a file is compressed as its name ends, .gz or .zst. The only room that includes
// the two libraries.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "launch/streams/byte_input.h"

namespace ptrt {

enum class Compression { none, gzip, zstd };

Compression compression_of(std::string_view path);
// What a file that begins so is by its content.
Compression compression_by_content(std::string_view begin);
const char* name_of(Compression compression);  // "gzip"

// Takes members (gzip) or frames (zstd) that follow each other. Memory is bounded whatever they say: 32 KiB of gzip,
// 128 MiB of zstd; a frame that needs more is refused.
class Decoder {
 public:
  virtual ~Decoder() = default;
  // Decodes from the front of `in`, which it shortens, up to `room` bytes, and returns how many. Where it returns 0,
  // all of `in` was taken. Throws bad_input, which names the file.
  virtual std::size_t decode(std::string_view& in, char* to, std::size_t room) = 0;
  // Throws bad_input where the bytes may not end here.
  virtual void check_end() const = 0;
};
// `compression` is not none. `name` is for messages.
std::unique_ptr<Decoder> make_decoder(Compression compression, std::string name);
// The bytes behind a compressed input; the input itself without compression.
std::unique_ptr<ByteInput> decoded(std::unique_ptr<ByteInput> input, Compression compression,
                                   const std::string& name);

// One member or frame. The same text gives the same bytes, however it is cut; no time or name is in them.
class Encoder {
 public:
  virtual ~Encoder() = default;
  // Appends what is ready to `out`.
  virtual void encode(std::string_view text, std::string& out) = 0;
  // Call last, once.
  virtual void finish(std::string& out) = 0;
};
// Without compression: copies.
std::unique_ptr<Encoder> make_encoder(Compression compression);
// As a function of the next part of a text and whether it is the last, for what is to be published at `path`; empty
// without compression.
std::function<std::string(std::string_view text, bool last)> results_encoding(const std::string& path);

}  // namespace ptrt
