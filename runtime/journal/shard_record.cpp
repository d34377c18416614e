#include "runtime/journal/shard_record.h"

#include <fmt/ranges.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>

#include "kernels/base/error.h"
#include "kernels/base/files.h"
#include "kernels/base/output_file.h"
#include "runtime/journal/journal_format.h"

namespace ptrt {
namespace {

using nlohmann::json;

std::string to_text(const ShardRecord& record) {
  std::string lines;
  for (const auto& [first, count] : record.lines)
    lines += fmt::format("{}[{},{}]", lines.empty() ? "" : ",", first, count);
  const std::string blank =
      record.blank_lines > 0 ? fmt::format("\"blank_lines\":{},", record.blank_lines) : "";
  const std::string body = fmt::format(
      "{{\"ptrt_shard\":1,\"job\":\"{}\",\"requests\":\"{:016x}\",\"index\":{},\"count\":{},\"file_lines\":{}"
      ","
      "\"lines\":[{}],{}\"kv_tokens\":{},\"kv_cache_exceeded\":[{}],\"most_tokens\":{},\"bytes\":{},"
      "\"results_"
      "crc32c\":\"{}\"",
      record.batch.job, record.batch.requests, record.shard.index, record.shard.count, record.file_lines,
      lines, blank, record.kv_tokens, fmt::join(record.kv_cache_exceeded, ","), record.most_tokens,
      record.bytes, checksum_text(record.results_crc32c));
  return fmt::format("{},\"crc32c\":\"{}\"}}\n", body, checksum_text(checksum_of(body)));
}

// Whether the values are such that the accessors of from_text() do not fail; to_text() then decides.
bool has_fields(const json& object) {
  const auto is = [&](const char* key, auto kind) { return object.contains(key) && kind(object[key]); };
  const auto number = [](const json& value) { return value.is_number_unsigned(); };
  const auto text = [](const json& value) { return value.is_string(); };
  const auto numbers = [&](const json& value) {
    return value.is_array() && std::ranges::all_of(value, number);
  };
  const auto pairs = [&](const json& value) {
    return value.is_array() &&
           std::ranges::all_of(value, [&](const json& run) { return numbers(run) && run.size() == 2; });
  };
  for (const char* key : {"index", "count", "file_lines", "kv_tokens", "most_tokens", "bytes"})
    if (!is(key, number)) return false;
  for (const char* key : {"job", "requests", "results_crc32c"})
    if (!is(key, text)) return false;
  return is("lines", pairs) && is("kv_cache_exceeded", numbers);
}

std::uint64_t from_hex(const std::string& text) {
  std::uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value, 16);
  return value;
}

// Whether the lines ascend and are the shard's, but for so many blank ones. What divides by the shard's count relies on it.
bool is_sound(const ShardRecord& record) {
  const Shard& shard = record.shard;
  if (shard.count < 1 || shard.count > kMostShards || shard.index < 0 || shard.index >= shard.count)
    return false;
  const std::int64_t of_shard = shard.lines_of(record.file_lines);
  std::int64_t place = 0, blank = 0;
  for (const auto& [first, count] : record.lines) {
    if (first < shard.line_at(place) || !shard.has(first)) return false;
    const std::int64_t begin = shard.place_of(first);
    if (count < 1 || count > of_shard - begin) return false;
    blank += begin - place;
    place = begin + count;
  }
  blank += of_shard - place;
  const auto is_own = [&](std::int64_t line) { return line < record.file_lines && shard.has(line); };
  const auto& exceeded = record.kv_cache_exceeded;
  return blank == record.blank_lines && exceeded.empty() == (record.kv_tokens == 0) &&
         std::ranges::is_sorted(exceeded) && std::ranges::all_of(exceeded, is_own);
}

// None unless to_text() would give exactly this text, of a record that makes sense.
std::optional<ShardRecord> from_text(const std::string& text) {
  const json object = json::parse(text, nullptr, false);
  if (!object.is_object() || !has_fields(object)) return std::nullopt;
  ShardRecord record;
  record.batch = {object["job"].get<std::string>(), from_hex(object["requests"].get<std::string>())};
  record.shard = {object["index"].get<std::int64_t>(), object["count"].get<std::int64_t>()};
  record.file_lines = object["file_lines"].get<std::int64_t>();
  for (const json& run : object["lines"])
    record.lines.push_back({run[0].get<std::int64_t>(), run[1].get<std::int64_t>()});
  if (object.contains("blank_lines") && object["blank_lines"].is_number_unsigned())
    record.blank_lines = object["blank_lines"].get<std::int64_t>();
  record.kv_tokens = object["kv_tokens"].get<std::int64_t>();
  record.kv_cache_exceeded = object["kv_cache_exceeded"].get<std::vector<std::int64_t>>();
  record.most_tokens = object["most_tokens"].get<std::int64_t>();
  record.bytes = object["bytes"].get<std::int64_t>();
  record.results_crc32c = static_cast<std::uint32_t>(from_hex(object["results_crc32c"].get<std::string>()));
  if (to_text(record) != text || !is_sound(record)) return std::nullopt;
  return record;
}

}  // namespace

std::string BatchIdentity::digest() const {
  return fmt::format("{}-{:016x}", job, requests);
}

std::int64_t ShardRecord::results() const {
  std::int64_t sum = 0;
  for (const Run& run : lines) sum += run.count;
  return sum;
}

std::string shard_record_path(const std::string& results_path) {
  return results_path + ".shard";
}

std::optional<ShardRecord> read_shard_record(const std::string& results_path) {
  const std::string path = shard_record_path(results_path);
  struct stat status;
  if (lstat(path.c_str(), &status) != 0) return std::nullopt;
  std::optional<ShardRecord> record;
  if (S_ISREG(status.st_mode)) record = from_text(read_text_file(path, "the record of a shard"));
  if (!record)
    throw_bad_input("{} is not as this program writes it: move it away, or choose another name", path);
  return record;
}

void write_shard_record(const std::string& results_path, const ShardRecord& record) {
  OutputFile file(shard_record_path(results_path));
  file.write(to_text(record));
  file.publish();
}

}  // namespace ptrt
