// The text of a journal. Its first line is the header, each other one a result; keys, order and spaces
// are always these:
//
//   {"ptrt_journal":2,"digest":"…","requests":N,"crc32c":"xxxxxxxx"}
//   {"line":7,"crc32c":"xxxxxxxx","result":{…}}
//
// The header's checksum is over the text before it. A line's checksum continues the header's, over
// the line number and the bytes of the result, so a line of another run does not fit either. CRC-32C
// finds every burst of up to 32 wrong bits and every three wrong bits of a line for certain, all else but
// once in 2^32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace ptrt {

// Checksum of the bytes whose checksum so far is `crc` followed by `text`.
std::uint32_t checksum_of(std::string_view text, std::uint32_t crc = 0);
// As files hold it: eight digits.
std::string checksum_text(std::uint32_t crc);

struct JournalHeader {
  std::string digest;  // of what results depend on: requests, model, options; no quotes, no backslashes
  std::int64_t requests = 0;

  // Without a line break, and the checksum that is in it.
  std::string text() const;
  std::uint32_t checksum() const;
};

// The header that a first line is; none where it is not exactly such a text.
std::optional<JournalHeader> header_of(std::string_view line);
// What a first line that is not the expected header is, for people: "belongs to another run: …",
// "is of an older version …", "is no journal of this program", "line 1 is damaged". To be put after
// the file's name.
std::string explain_header(std::string_view line, const JournalHeader& expected);
// Whether a file that begins so is a journal, of any version.
bool begins_like_journal(std::string_view text);

class JournalLineFormat {
 public:
  explicit JournalLineFormat(const JournalHeader& header) : seed_(header.checksum()) {}

  // Appends the line to `text`, with its line break.
  void append(std::int64_t line, std::string_view result, std::string& text) const;

  struct Parsed {
    std::int64_t line = 0;
    std::string_view result;
  };
  // `text` has no line break. None unless append() would give exactly this text.
  std::optional<Parsed> parse(std::string_view text) const;

 private:
  std::uint32_t checksum(std::string_view digits, std::string_view result) const;

  std::uint32_t seed_;
};

}  // namespace ptrt
