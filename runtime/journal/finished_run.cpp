#include "runtime/journal/finished_run.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

#include "kernels/base/error.h"
#include "kernels/base/file_descriptor.h"
#include "kernels/base/output_file.h"
#include "runtime/journal/journal_format.h"

namespace fs = std::filesystem;

namespace ptrt {
namespace {

constexpr std::size_t kMostBytes = 4096;              // of the .done file
constexpr std::size_t kPiece = std::size_t{1} << 20;  // of the results, read at once

std::string to_text(const FinishedRun& run) {
  std::string body = fmt::format(
      "{{\"ptrt_results\":1,\"digest\":\"{}\",\"requests\":{},\"bytes\":{},\"results_crc32c\":\"{}\"",
      run.digest, run.requests, run.bytes, checksum_text(run.results_crc32c));
  if (run.kv_tokens > 0) body += fmt::format(",\"kv_tokens\":{}", run.kv_tokens);
  if (run.most_tokens) body += fmt::format(",\"most_tokens\":{}", *run.most_tokens);
  return fmt::format("{},\"crc32c\":\"{}\"}}\n", body, checksum_text(checksum_of(body)));
}

// None unless to_text() would give exactly this text.
std::optional<FinishedRun> from_text(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) return std::nullopt;
  for (const char* key : {"requests", "bytes"})
    if (!json.contains(key) || !json[key].is_number_unsigned()) return std::nullopt;
  for (const char* key : {"digest", "results_crc32c"})
    if (!json.contains(key) || !json[key].is_string()) return std::nullopt;
  FinishedRun run{.digest = json["digest"].get<std::string>(),
                  .requests = json["requests"].get<std::int64_t>(),
                  .bytes = json["bytes"].get<std::int64_t>()};
  if (json.contains("kv_tokens") && json["kv_tokens"].is_number_unsigned())
    run.kv_tokens = json["kv_tokens"].get<std::int64_t>();
  if (json.contains("most_tokens") && json["most_tokens"].is_number_unsigned())
    run.most_tokens = json["most_tokens"].get<std::int64_t>();
  run.results_crc32c = static_cast<std::uint32_t>(
      std::strtoul(json["results_crc32c"].get<std::string>().c_str(), nullptr, 16));
  if (to_text(run) != text) return std::nullopt;
  return run;
}

// Bytes and checksum of a whole file.
FinishedRun measure(const std::string& path) {
  const FileDescriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) throw_bad_input("cannot read {}: {}", path, std::strerror(errno));
  FinishedRun found;
  std::string piece(kPiece, '\0');
  for (;;) {
    const ssize_t got = read(file.get(), piece.data(), piece.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_bad_input("cannot read {}: {}", path, std::strerror(errno));
    if (got == 0) return found;
    found.results_crc32c =
        checksum_of(std::string_view(piece).substr(0, static_cast<std::size_t>(got)), found.results_crc32c);
    found.bytes += got;
  }
}

}  // namespace

std::string finished_path(const std::string& results_path) {
  return results_path + ".done";
}

std::optional<FinishedRun> read_finished(const std::string& results_path) {
  const std::string path = finished_path(results_path);
  const FileDescriptor file(open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!file && errno == ENOENT) return std::nullopt;
  std::string text(kMostBytes, '\0');
  const ssize_t got = file ? read(file.get(), text.data(), text.size()) : -1;
  if (got < 0) throw_bad_input("cannot read {}: {}", path, std::strerror(errno));
  text.resize(static_cast<std::size_t>(got));
  const auto run = from_text(text);
  if (!run)
    throw_bad_input(
        "{} is not as this program writes it, and it would be replaced: move it away, or choose another -o",
        path);
  return run;
}

void write_finished(const std::string& results_path, const FinishedRun& run) {
  const std::string path = finished_path(results_path);
  OutputFile file(path);
  file.write(to_text(run));
  file.publish();
}

bool is_finished(const std::string& results_path, const std::string& digest, std::int64_t requests,
                 std::int64_t kv_tokens) {
  std::error_code ignored;
  if (!fs::exists(results_path, ignored)) return false;
  const auto run = read_finished(results_path);
  if (!run)
    throw_bad_input(
        "{} is there, but neither its journal nor {}, which would say what run it is from: "
        "without --resume it is replaced",
        results_path, finished_path(results_path));
  if (run->digest != digest || run->requests != requests)
    throw_bad_input(
        "{} is the result of another run: its requests, model or options differ from these (digest {}, now "
        "{})",
        results_path, run->digest, digest);
  if (run->kv_tokens > 0 && kv_tokens > run->kv_tokens)
    throw_bad_input(
        "{} is the result of a run whose KV cache of {} tokens was too small for some requests; with {} "
        "tokens "
        "now they may have results: without --resume it is replaced",
        results_path, run->kv_tokens, kv_tokens);
  const FinishedRun found = measure(results_path);
  if (found.bytes != run->bytes || found.results_crc32c != run->results_crc32c)
    throw_bad_input(
        "{} was changed after its run: expected {} bytes with CRC-32C {} ({}), found {} bytes with {}",
        results_path, run->bytes, checksum_text(run->results_crc32c), finished_path(results_path),
        found.bytes, checksum_text(found.results_crc32c));
  return true;
}

}  // namespace ptrt
