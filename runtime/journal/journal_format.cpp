#include "runtime/journal/journal_format.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <nlohmann/json.hpp>
#include <span>

#include "model_io/file/crc32c.h"

namespace ptrt {
namespace {

constexpr int kVersion = 2;
constexpr std::string_view kMagic = "{\"ptrt_journal\":";
constexpr std::string_view kLine = "{\"line\":";
constexpr std::string_view kChecksum = ",\"crc32c\":\"";
constexpr std::string_view kResult = "\",\"result\":";
constexpr std::size_t kChecksumDigits = 8;
constexpr std::size_t kMostDigits = 18;  // of a line number

bool take(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

// As checksum_text(), without memory of its own.
std::array<char, kChecksumDigits> checksum_digits(std::uint32_t crc) {
  std::array<char, kChecksumDigits> digits;
  for (std::size_t i = kChecksumDigits; i-- > 0; crc >>= 4) digits[i] = "0123456789abcdef"[crc & 15];
  return digits;
}

std::string header_body(const JournalHeader& header) {
  return fmt::format("{}{},\"digest\":\"{}\",\"requests\":{}", kMagic, kVersion, header.digest,
                     header.requests);
}

}  // namespace

std::uint32_t checksum_of(std::string_view text, std::uint32_t crc) {
  return crc32c(crc, std::as_bytes(std::span(text)));
}

std::string checksum_text(std::uint32_t crc) {
  return fmt::format("{:08x}", crc);
}

std::uint32_t JournalHeader::checksum() const {
  return checksum_of(header_body(*this));
}

std::string JournalHeader::text() const {
  return fmt::format("{}{}{:08x}\"}}", header_body(*this), kChecksum, checksum());
}

bool begins_like_journal(std::string_view text) {
  return text.starts_with(kMagic);
}

std::optional<JournalHeader> header_of(std::string_view line) {
  const auto json = nlohmann::json::parse(line, nullptr, false);
  if (!json.is_object()) return std::nullopt;
  const auto digest = json.find("digest"), requests = json.find("requests");
  if (digest == json.end() || !digest->is_string() || requests == json.end() ||
      !requests->is_number_unsigned())
    return std::nullopt;
  JournalHeader header{digest->get<std::string>(), requests->get<std::int64_t>()};
  return header.text() == line ? std::optional(std::move(header)) : std::nullopt;
}

std::string explain_header(std::string_view line, const JournalHeader& expected) {
  if (!begins_like_journal(line)) return "is no journal of this program";
  const auto json = nlohmann::json::parse(line, nullptr, false);
  if (!json.is_object()) return "is damaged in line 1";
  const auto version = json.find("ptrt_journal");
  if (version != json.end() && version->is_number_unsigned() && *version != kVersion)
    return fmt::format(
        "is the journal of {} version of this program (format {}, now {}): it cannot be continued",
        *version < kVersion ? "an older" : "a newer", version->dump(), kVersion);
  const auto found = header_of(line);
  if (!found) return "is damaged in line 1";
  return fmt::format(
      "belongs to another run: its requests, model or options differ from these (digest {}, now {})",
      found->digest, expected.digest);
}

std::uint32_t JournalLineFormat::checksum(std::string_view digits, std::string_view result) const {
  return checksum_of(result, checksum_of(":", checksum_of(digits, seed_)));
}

void JournalLineFormat::append(std::int64_t line, std::string_view result, std::string& text) const {
  const fmt::format_int number(line);
  const std::string_view digits(number.data(), number.size());
  const auto crc = checksum_digits(checksum(digits, result));
  for (const std::string_view part :
       {kLine, digits, kChecksum, std::string_view(crc.data(), crc.size()), kResult, result})
    text += part;
  text += "}\n";
}

std::optional<JournalLineFormat::Parsed> JournalLineFormat::parse(std::string_view text) const {
  if (!take(text, kLine)) return std::nullopt;
  const std::string_view digits = text.substr(0, std::min(text.find(','), text.size()));
  if (digits.empty() || digits.size() > kMostDigits) return std::nullopt;
  Parsed parsed;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), parsed.line);
  // No sign, no leading zero, nothing after the number.
  if (error != std::errc() || end != digits.data() + digits.size() || digits.front() == '-' ||
      (digits.front() == '0' && digits.size() > 1))
    return std::nullopt;
  text.remove_prefix(digits.size());
  if (!take(text, kChecksum) || text.size() < kChecksumDigits) return std::nullopt;
  const std::string_view found = text.substr(0, kChecksumDigits);
  text.remove_prefix(kChecksumDigits);
  if (!take(text, kResult) || !text.ends_with('}')) return std::nullopt;
  text.remove_suffix(1);
  parsed.result = text;
  if (text.empty() ||
      found != std::string_view(checksum_digits(checksum(digits, text)).data(), kChecksumDigits))
    return std::nullopt;
  return parsed;
}

}  // namespace ptrt
