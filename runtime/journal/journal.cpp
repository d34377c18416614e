#include "runtime/journal/journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <thread>

#include "kernels/base/error.h"
#include "kernels/base/output_file.h"
#include "kernels/base/progress.h"

namespace fs = std::filesystem;

namespace ptrt {
namespace {

constexpr std::size_t kPiece = std::size_t{1} << 20;  // bytes read or written at once
constexpr mode_t kMode = 0666;                        // less the umask
// Another program may look for a moment whether a journal is locked (in_use).
constexpr int kLockAttempts = 20;
constexpr auto kLockPause = std::chrono::milliseconds(10);
constexpr int kOpenAttempts = 10;
constexpr auto kBetweenLooks = std::chrono::milliseconds(100);

constexpr const char* kInUse = "{} is in use by a run that is still going";

std::string reason() {
  return errno == ELOOP ? "it is a symbolic link" : std::strerror(errno);
}

// Whether a run holds the lock of this file. Of file systems without locks it is not known.
bool in_use(int descriptor) {
  return flock(descriptor, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

// What is at the journal's name, if anything: a journal that is in use, one of an earlier run, or no journal.
void check_journal(const std::string& path, bool resume) {
  const FileDescriptor file(open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!file && errno == ENOENT) return;
  if (!file) throw_bad_input("cannot open {}: {}", path, reason());
  if (in_use(file.get())) throw_bad_input(kInUse, path);
  if (resume) return;
  std::array<char, 32> begin{};
  const ssize_t got = pread(file.get(), begin.data(), begin.size(), 0);
  if (got != 0 && (got < 0 || !begins_like_journal({begin.data(), static_cast<std::size_t>(got)})))
    throw_bad_input("{} is in the way, and it is no journal of this program: choose another -o", path);
  throw_bad_input("{} is the journal of an earlier run: continue with --resume, or remove it to start again",
                  path);
}

void check_directory(const std::string& results_path, const fs::path& file) {
  std::error_code ignored;
  const fs::path parent = file.parent_path();
  const std::string directory = parent.empty() ? "." : parent.string();
  if (!fs::is_directory(directory, ignored))
    throw_bad_input("cannot write {}: there is no directory {}", results_path, directory);
  if (access(directory.c_str(), W_OK | X_OK) != 0)
    throw_bad_input("cannot write {}: directory {}: {}", results_path, directory, std::strerror(errno));
}

}  // namespace

std::string journal_path(const std::string& results_path) {
  return results_path + ".partial";
}

bool Journal::exists(const std::string& results_path) {
  struct stat status;
  return lstat(journal_path(results_path).c_str(), &status) == 0;
}

std::optional<std::string> Journal::digest_at(const std::string& results_path) {
  if (!exists(results_path)) {
    const auto run = read_finished(results_path);
    return run ? std::optional(run->digest) : std::nullopt;
  }
  const FileDescriptor file(
      open(journal_path(results_path).c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  std::string text(4096, '\0');
  const ssize_t got = file ? read(file.get(), text.data(), text.size()) : -1;
  text.resize(got < 0 ? 0 : static_cast<std::size_t>(got));
  const auto header = header_of(text.substr(0, text.find('\n')));
  return header ? std::optional(header->digest) : std::nullopt;
}

void Journal::check_output(const std::string& results_path, bool resume) {
  std::error_code ignored;
  if (fs::is_directory(results_path, ignored))
    throw_bad_input("cannot write {}: it is a directory", results_path);
  if (fs::exists(results_path, ignored) && !fs::is_regular_file(results_path, ignored))
    throw_bad_input("cannot write {}: it is not a regular file", results_path);
  check_directory(results_path, results_path);
  check_directory(results_path, behind_links(results_path));
  check_journal(journal_path(results_path), resume);
  read_finished(results_path);
}

Journal::Journal(const std::string& results_path, const std::string& digest, std::int64_t requests,
                 bool resume, JournalOptions options)
    : results_path_(results_path),
      path_(journal_path(results_path)),
      header_{digest, requests},
      format_(header_),
      options_(std::move(options)),
      entries_(static_cast<std::size_t>(options_.places > 0 ? options_.places : requests)) {
  check_output(results_path, resume);
  // A journal may vanish while it is opened: its run has published it.
  for (int i = 0; resume && i < kOpenAttempts; i++) {
    open_existing();
    if (!file_) break;
    lock();
    if (is_at_its_name()) {
      read_back();
      return;
    }
  }
  open_new();
  lock();
  write(header_.text() + "\n");
}

void Journal::open_existing() {
  file_ = FileDescriptor(open(path_.c_str(), O_RDWR | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!file_ && errno != ENOENT) throw_bad_input("cannot open {}: {}", path_, reason());
  struct stat status;
  if (file_ && (fstat(file_.get(), &status) != 0 || !S_ISREG(status.st_mode)))
    throw_bad_input("cannot open {}: it is not a regular file", path_);
}

void Journal::open_new() {
  file_ = FileDescriptor(open(path_.c_str(), O_RDWR | O_APPEND | O_CREAT | O_EXCL | O_CLOEXEC, kMode));
  if (file_) return;
  const int error = errno;
  check_journal(path_, false);  // another run was quicker
  throw_bad_input("cannot create {}: {}", path_, std::strerror(error));
}

// Held until the file is closed. File systems without locks (ENOLCK, ENOTSUP) go without.
void Journal::lock() const {
  for (int i = 0; flock(file_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK; i++) {
    if (i == kLockAttempts) throw_bad_input(kInUse, path_);
    std::this_thread::sleep_for(kLockPause);
  }
}

bool Journal::is_at_its_name() const {
  struct stat open_file, named;
  return fstat(file_.get(), &open_file) == 0 && lstat(path_.c_str(), &named) == 0 &&
         open_file.st_dev == named.st_dev && open_file.st_ino == named.st_ino;
}

void Journal::check_name() const {
  if (is_at_its_name()) return;
  throw_failure("{} {} while this run was going", path_,
                exists(results_path_) ? "was replaced by another file" : "was removed or renamed");
}

void Journal::check_size() const {
  const std::int64_t size = lseek(file_.get(), 0, SEEK_END);
  if (size != end_)
    throw_failure("{} was changed by another program while this run was going: expected {} bytes, found {}",
                  path_, end_, size);
}

// Of a file whose times were asked for, the next write costs several times as much: so not at every line.
void Journal::look_at_name() {
  const auto now = std::chrono::steady_clock::now();
  if (now - looked_ < kBetweenLooks) return;
  looked_ = now;
  check_name();
}

// Checks everything, then cuts off a torn last line. A journal that ends inside its first line holds
// nothing and is started again.
void Journal::read_back() {
  std::string piece;          // from the start of a line on
  std::int64_t read_end = 0;  // bytes of the file read so far
  std::int64_t number = 0;    // of lines
  for (;;) {
    const std::size_t kept = piece.size();
    piece.resize(kept + kPiece);
    const std::size_t got = read_from(file_.get(), read_end, piece.data() + kept, kPiece, path_);
    piece.resize(kept + got);
    if (got == 0) break;
    read_end += static_cast<std::int64_t>(got);
    std::size_t at = 0;
    for (std::size_t stop = piece.find('\n', kept); stop != std::string::npos; stop = piece.find('\n', at)) {
      read_line(std::string_view(piece).substr(at, stop - at), number++);
      end_ += static_cast<std::int64_t>(stop + 1 - at);
      at = stop + 1;
    }
    piece.erase(0, at);
    note_progress();
  }
  if (number == 0 && !header_.text().starts_with(piece))
    throw_bad_input("{} {}", path_, explain_header(piece, header_));
  if (!piece.empty() && ftruncate(file_.get(), end_) != 0)
    throw_failure("cannot write {}: {}", path_, std::strerror(errno));
  if (number == 0) write(header_.text() + "\n");
}

void Journal::read_line(std::string_view text, std::int64_t number) {
  if (number == 0) {
    if (text != header_.text()) throw_bad_input("{} {}", path_, explain_header(text, header_));
    return;
  }
  const auto damaged = [&](const std::string& how) {
    throw_bad_input("{}: line {} is damaged ({}); the {} before it are sound", path_, number + 1, how,
                    number);
  };
  const auto parsed = format_.parse(text);
  if (!parsed) return damaged("it is not as it was written");
  if (parsed->line >= static_cast<std::int64_t>(entries_.size()))
    return damaged(fmt::format("there is no request {}", parsed->line));
  Entry& entry = entries_[static_cast<std::size_t>(parsed->line)];
  if (entry.bytes > 0) return damaged(fmt::format("request {} has two results", parsed->line));
  if (options_.runs_again && options_.runs_again(parsed->result)) return;
  entry = {end_, static_cast<std::int64_t>(text.size())};
  count_++;
}

void Journal::write(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(file_.get(), text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) throw_failure("cannot write {}: {}", path_, std::strerror(errno));
    text.remove_prefix(static_cast<std::size_t>(written));
    end_ += written;
  }
}

void Journal::append(std::span<const Result> results) {
  look_at_name();
  check_size();
  text_.clear();
  const std::int64_t begin = end_;
  for (const Result& result : results) {
    Entry& entry = entries_[static_cast<std::size_t>(result.line)];
    PTRT_CHECK(entry.bytes == 0);
    const auto at = std::ssize(text_);
    format_.append(result.line, result.json, text_);
    entry = {begin + at, std::ssize(text_) - at - 1};
  }
  write(text_);
  count_ += std::ssize(results);
}

std::string_view Journal::read_entry(std::int64_t line, PieceReader& reader) const {
  const Entry& entry = entries_[static_cast<std::size_t>(line)];
  const auto text = reader.read(entry.offset, static_cast<std::size_t>(entry.bytes));
  const auto parsed = text ? format_.parse(*text) : std::nullopt;
  if (!parsed || parsed->line != line)
    throw_failure("{} was changed by another program while this run was going: the result of request {}",
                  path_, line);
  return parsed->result;
}

void Journal::on_disk(const std::function<void()>& write) const {
  try {
    write();
  } catch (const Error& e) {
    throw_failure("{}; finished results are kept in {}", e.what(), path_);
  }
}

std::string Journal::result(std::int64_t line) const {
  PieceReader reader(file_.get(), path_);
  return std::string(read_entry(line, reader));
}

void Journal::publish(const std::function<void(FinishedRun&)>& before) {
  PieceReader reader(file_.get(), path_);
  publish_pieces(
      [&](std::int64_t line, std::string& text) {
        text += read_entry(line, reader);
        text += '\n';
      },
      before);
}

void Journal::publish(std::string_view text) {
  PieceReader reader(file_.get(), path_);
  publish_pieces([&](std::int64_t line, std::string& out) {
    read_entry(line, reader);
    if (line == 0) out += text;
  });
}

void Journal::for_each_published(const std::function<void(std::int64_t line)>& visit) const {
  std::vector<std::int64_t> lines;  // with their results unordered
  for (std::int64_t line = 0; line < std::ssize(entries_); line++) {
    if (!has(line)) continue;
    if (options_.unordered)
      lines.push_back(line);
    else
      visit(line);
  }
  const auto offset = [this](std::int64_t line) { return entries_[static_cast<std::size_t>(line)].offset; };
  std::ranges::sort(lines, {}, offset);
  for (const std::int64_t line : lines) visit(line);
}

// `add`: appends what of the file's text is written at the turn of a line.
void Journal::publish_pieces(const std::function<void(std::int64_t line, std::string& text)>& add,
                             const std::function<void(FinishedRun&)>& before) {
  PTRT_CHECK(count_ == header_.requests);
  check_name();
  check_size();
  FinishedRun run{.digest = header_.digest, .requests = header_.requests};
  std::optional<OutputFile> out;
  on_disk([&] { out.emplace(results_path_); });
  std::string text;
  const auto write = [&](bool last) {
    if (options_.encode) text = options_.encode(text, last);
    run.results_crc32c = checksum_of(text, run.results_crc32c);
    run.bytes += static_cast<std::int64_t>(text.size());
    on_disk([&] { out->write(text); });
    text.clear();
    note_progress();
  };
  for_each_published([&](std::int64_t line) {
    add(line, text);
    if (text.size() >= kPiece) write(false);
  });
  write(true);
  // In this order: until the journal is gone, --resume goes by it alone.
  if (before) on_disk([&] { before(run); });
  on_disk([&] { write_finished(results_path_, run); });
  on_disk([&] { out->publish(); });
  if (is_at_its_name()) unlink(path_.c_str());
}

}  // namespace ptrt
