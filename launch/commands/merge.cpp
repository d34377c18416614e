// `ptrt merge`: the results of all shards of a request file, in the order of its lines.
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "kernels/base/error.h"
#include "kernels/base/file_descriptor.h"
#include "kernels/base/output_file.h"
#include "launch/commands/commands.h"
#include "launch/job/standard_streams.h"
#include "launch/streams/compression.h"
#include "runtime/journal/finished_run.h"
#include "runtime/journal/journal.h"
#include "runtime/journal/journal_format.h"
#include "runtime/journal/shard_record.h"

namespace ptrt {
namespace {

constexpr std::size_t kPiece = std::size_t{1} << 16;   // of a shard, read at once
constexpr std::size_t kOutput = std::size_t{1} << 20;  // of the results, written at once

// The results of one shard, a line at a time, compressed or not. The file is open only while it is read: there may be more shards than
// a process may have files open.
class ShardResults {
 public:
  ShardResults(std::string path, ShardRecord record) : path_(std::move(path)), record_(std::move(record)) {
    if (const Compression compression = compression_of(path_); compression != Compression::none)
      decoder_ = make_decoder(compression, path_);
  }

  const std::string& path() const { return path_; }
  const ShardRecord& record() const { return record_; }
  std::string name() const { return fmt::format("{} (shard {})", path_, record_.shard.text()); }

  bool has(std::int64_t line) const {
    return run_ < record_.lines.size() && line == record_.lines[run_].first + taken_ * record_.shard.count;
  }
  // The result of a line that it has, with its line break. Valid until the next call.
  std::string_view take() {
    std::size_t stop = 0;
    while ((stop = buffer_.find('\n', at_)) == std::string::npos)
      if (!read_on()) throw_changed();
    const std::string_view line = std::string_view(buffer_).substr(at_, stop + 1 - at_);
    at_ = stop + 1;
    if (++taken_ == record_.lines[run_].count) run_++, taken_ = 0;
    return line;
  }
  // After the last line: throws bad_input unless the file is, to its last byte, what its run wrote.
  void check_end() {
    // Compressed bytes may follow that hold no more text.
    bool ended = at_ == buffer_.size();
    while (ended && read_on()) ended = at_ == buffer_.size();
    if (!ended || read_ != record_.bytes || crc_ != record_.results_crc32c) throw_changed();
  }

 private:
  // False at the end of the file.
  bool read_on() {
    const FileDescriptor file(open(path_.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file) throw_bad_input("cannot read {}: {}", path_, std::strerror(errno));
    buffer_.erase(0, at_);
    at_ = 0;
    std::string piece(kPiece, '\0');
    ssize_t got = 0;
    do {
      got = pread(file.get(), piece.data(), kPiece, read_);
    } while (got < 0 && errno == EINTR);
    if (got < 0) throw_bad_input("cannot read {}: {}", path_, std::strerror(errno));
    piece.resize(static_cast<std::size_t>(got));
    crc_ = checksum_of(piece, crc_);
    read_ += got;
    if (decoder_)
      decode(piece);
    else
      buffer_ += piece;
    return got > 0;
  }
  void decode(std::string_view piece) {
    for (std::size_t given = kPiece; given > 0;) {
      const std::size_t kept = buffer_.size();
      buffer_.resize(kept + kPiece);
      given = decoder_->decode(piece, buffer_.data() + kept, kPiece);
      buffer_.resize(kept + given);
    }
  }

  [[noreturn]] void throw_changed() const {
    throw_bad_input(
        "{} was changed after its run, or is not the file that {} tells of: expected {} results in {} "
        "bytes with CRC-32C {}",
        path_, shard_record_path(path_), record_.results(), record_.bytes,
        checksum_text(record_.results_crc32c));
  }

  std::string path_;
  ShardRecord record_;
  std::unique_ptr<Decoder> decoder_;  // null: plain text
  std::size_t run_ = 0;               // of the record's lines: the next line is in it,
  std::int64_t taken_ = 0;            // after so many of its lines
  std::string buffer_;                // from the next line on at at_
  std::size_t at_ = 0;
  std::int64_t read_ = 0;  // bytes of the file, and their checksum
  std::uint32_t crc_ = 0;
};

ShardResults open_shard(const std::string& path) {
  if (Journal::exists(path))
    throw_bad_input("{} is not finished: continue the run of {} with --resume", path, journal_path(path));
  auto record = read_shard_record(path);
  if (!record)
    throw_bad_input("{} is no result of a --shard run: there is no {} beside it", path,
                    shard_record_path(path));
  return {path, std::move(*record)};
}

// All are of one run, and each is there once. In the order of their numbers then.
void order_shards(std::vector<ShardResults>& shards) {
  const ShardRecord& first = shards.front().record();
  for (const ShardResults& other : shards) {
    const ShardRecord& record = other.record();
    if (record.batch.job.starts_with(kUnordered))
      throw_bad_input("{} has its results in no order (--unordered): they cannot be merged", other.path());
    if (record.batch != first.batch || record.file_lines != first.file_lines)
      throw_bad_input(
          "{} and {} are of different runs: their requests, model or options differ (digests {}-{:016x} "
          "and {}-{:016x})",
          shards.front().path(), other.path(), first.batch.job, first.batch.requests, record.batch.job,
          record.batch.requests);
    if (record.shard.count != first.shard.count)
      throw_bad_input("{} and {} are no shards of one division", shards.front().name(), other.name());
  }
  std::ranges::stable_sort(shards, {}, [](const ShardResults& shard) { return shard.record().shard.index; });
  for (std::size_t i = 1; i < shards.size(); i++)
    if (shards[i].record().shard == shards[i - 1].record().shard)
      throw_bad_input("{} and {} are both shard {}", shards[i - 1].path(), shards[i].path(),
                      shards[i].record().shard.text());
  constexpr std::size_t kMostNamed = 10;
  std::vector<std::string> missing;
  std::size_t at = 0;
  for (std::int64_t index = 0; index < first.shard.count && missing.size() <= kMostNamed; index++)
    if (at < shards.size() && shards[at].record().shard.index == index)
      at++;
    else
      missing.push_back(missing.size() < kMostNamed ? Shard{index, first.shard.count}.text() : "…");
  if (!missing.empty())
    throw_bad_input("of {} shards {} are given: {} missing", shards.front().record().shard.count,
                    shards.size(), fmt::join(missing, ", "));
}

// The tokens of the shards' KV pool, where it was too small for some line; else 0. Throws bad_input where no
// single size of the pool gives these results: it is in the results of the lines that do not fit it, and all others
// fit it.
std::int64_t pool_too_small(const std::vector<ShardResults>& shards) {
  const ShardResults* small = nullptr;
  for (const ShardResults& shard : shards) {
    const std::int64_t pool = shard.record().kv_tokens;
    if (pool > 0 && (small == nullptr || pool < small->record().kv_tokens)) small = &shard;
  }
  if (small == nullptr) return 0;
  const std::int64_t pool = small->record().kv_tokens;
  const auto refuse = [&](const std::string& why) {
    throw_bad_input(
        "line {} did not fit the KV cache of {} tokens in {}, and {}: run the shards with one "
        "--kv-cache-bytes",
        small->record().kv_cache_exceeded.front() + 1, pool, small->name(), why);
  };
  for (const ShardResults& shard : shards) {
    const ShardRecord& record = shard.record();
    if (record.kv_tokens > pool) refuse(fmt::format("{} ran with {} tokens", shard.name(), record.kv_tokens));
    if (record.most_tokens > pool)
      refuse(fmt::format("{} has a result that needed {} tokens", shard.name(), record.most_tokens));
  }
  return pool;
}

void check_files(const MergeOptions& options) {
  if (options.output == "-")
    throw_bad_input("merge writes a file, not standard output: OUT must be its name");
  std::vector<NamedFile> inputs;
  for (const std::string& shard : options.shards) {
    inputs.push_back({"the shard", shard});
    inputs.push_back({"the file", shard_record_path(shard)});
  }
  check_outputs(std::vector<NamedFile>{{"OUT", options.output},
                                       {"the journal", journal_path(options.output)},
                                       {"the file", finished_path(options.output)}},
                inputs);
  Journal::check_output(options.output, false);
}

}  // namespace

void run_merge(const MergeOptions& options) {
  check_files(options);
  std::vector<ShardResults> shards;
  for (const std::string& path : options.shards) shards.push_back(open_shard(path));
  order_shards(shards);
  const ShardRecord first = shards.front().record();
  FinishedRun run{.digest = first.batch.digest(), .kv_tokens = pool_too_small(shards)};

  remove_temporaries_on_signals();
  OutputFile out(options.output);
  const auto encode = results_encoding(options.output);
  std::string text;
  const auto write = [&](bool last) {
    if (encode) text = encode(text, last);
    run.results_crc32c = checksum_of(text, run.results_crc32c);
    run.bytes += std::ssize(text);
    out.write(text);
    text.clear();
  };
  for (std::int64_t line = 0; line < first.file_lines; line++) {
    ShardResults& shard = shards[static_cast<std::size_t>(line % first.shard.count)];
    if (!shard.has(line)) continue;
    text += shard.take();
    run.requests++;
    if (text.size() >= kOutput) write(false);
  }
  write(true);
  for (ShardResults& shard : shards) shard.check_end();
  // As a run of the whole file leaves them: --resume of it finds that nothing is left to do.
  write_finished(options.output, run);
  out.publish();
  print_out("{}: {} results of {} shards\n", options.output, run.requests, shards.size());
}

}  // namespace ptrt
