#include "runtime/serving/journal.h"

#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"

namespace fs = std::filesystem;

namespace ptrt {
namespace {

std::string journal_path(const std::string& results_path) {
  return results_path + ".partial";
}

std::string prefix_of(std::int64_t line) {
  return fmt::format("{{\"line\":{},\"result\":", line);
}

void sync_to_disk(std::FILE* file, const std::string& path) {
  // Pipes and some file systems do not support fsync (EINVAL). A full disk (ENOSPC, EDQUOT, EIO) is
  // an error.
  if (std::fflush(file) != 0 || (fsync(fileno(file)) != 0 && errno != EINVAL))
    throw_failure("cannot write {}: {}", path, std::strerror(errno));
}

}  // namespace

void Journal::check_output(const std::string& results_path, bool resume) {
  const fs::path directory = fs::absolute(results_path).parent_path();
  std::error_code ignored;
  if (!fs::is_directory(directory, ignored))
    throw_bad_input("cannot write {}: there is no directory {}", results_path, directory.string());
  if (fs::is_directory(results_path, ignored))
    throw_bad_input("cannot write {}: it is a directory", results_path);
  if (fs::exists(results_path, ignored) && !fs::is_regular_file(results_path, ignored))
    throw_bad_input("cannot write {}: it is not a regular file", results_path);
  if (access(directory.c_str(), W_OK) != 0)
    throw_bad_input("cannot write {}: directory {}: {}", results_path, directory.string(),
                    std::strerror(errno));
  if (!resume && fs::exists(journal_path(results_path), ignored))
    throw_bad_input(
        "{} is the journal of an earlier run: continue with --resume, or remove it to start again",
        journal_path(results_path));
}

Journal::Journal(const std::string& results_path, const std::string& digest, std::int64_t requests,
                 bool resume)
    : results_path_(results_path),
      path_(journal_path(results_path)),
      entries_(static_cast<std::size_t>(requests)) {
  check_output(results_path, resume);
  const bool goes_on = resume && fs::exists(path_);
  file_ = std::fopen(path_.c_str(), goes_on ? "r+b" : "wbx+");
  if (file_ == nullptr) throw_bad_input("cannot open {}: {}", path_, std::strerror(errno));
  // Held until the file is closed. File systems without locks (ENOLCK, ENOTSUP) go without.
  if (flock(fileno(file_), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    throw_bad_input("{} is in use by a run that is still going", path_);
  if (goes_on)
    read_back(digest, requests);
  else
    start(digest, requests);
}

Journal::~Journal() {
  if (file_ != nullptr) std::fclose(file_);
}

void Journal::start(const std::string& digest, std::int64_t requests) {
  write_line(nlohmann::ordered_json{{"ptrt_journal", 1}, {"digest", digest}, {"requests", requests}}.dump());
}

// A journal that ends inside its first line holds nothing, so it is started again.
void Journal::read_back(const std::string& digest, std::int64_t requests) {
  std::string text;
  int c = 0;
  long offset = 0;
  for (std::int64_t number = 0;; number++) {
    text.clear();
    while ((c = std::fgetc(file_)) != EOF && c != '\n') text.push_back(static_cast<char>(c));
    if (c == EOF && std::ferror(file_)) throw_failure("cannot read {}: {}", path_, std::strerror(errno));
    if (c == EOF) break;  // the end, or a torn last line
    const auto line = nlohmann::json::parse(text, nullptr, false);
    if (number == 0) {
      if (!line.is_object() || line.value("ptrt_journal", 0) != 1)
        throw_bad_input("{} is no journal of this program", path_);
      if (line.value("digest", "") != digest || line.value("requests", std::int64_t{-1}) != requests)
        throw_bad_input(
            "{} belongs to another run: its requests, model or options differ from these (digest {}, now {})",
            path_, line.value("digest", ""), digest);
    } else {
      const bool sound = line.is_object() && line.contains("line") && line["line"].is_number_integer() &&
                         line.contains("result") && line["result"].is_object();
      const std::int64_t key = sound ? line["line"].get<std::int64_t>() : -1;
      if (key < 0 || key >= requests || !text.starts_with(prefix_of(key)))
        throw_bad_input("{}: line {} is damaged", path_, number + 1);
      Entry& entry = entries_[static_cast<std::size_t>(key)];
      if (entry.length == 0) count_++;
      const std::string prefix = prefix_of(key);
      entry = {offset + static_cast<long>(prefix.size()), text.size() - prefix.size() - 1};
    }
    offset += static_cast<long>(text.size()) + 1;
  }
  end_ = offset;
  if (ftruncate(fileno(file_), end_) != 0) throw_failure("cannot write {}: {}", path_, std::strerror(errno));
  std::fseek(file_, end_, SEEK_SET);
  if (end_ == 0) start(digest, requests);
}

void Journal::write_line(const std::string& text) {
  const std::string line = text + "\n";
  if (std::fwrite(line.data(), 1, line.size(), file_) != line.size() || std::fflush(file_) != 0)
    throw_failure("cannot write {}: {}", path_, std::strerror(errno));
  end_ += static_cast<long>(line.size());
}

void Journal::append(std::int64_t line, const std::string& result_json) {
  const std::string prefix = prefix_of(line);
  const long offset = end_ + static_cast<long>(prefix.size());
  write_line(prefix + result_json + "}");
  Entry& entry = entries_[static_cast<std::size_t>(line)];
  if (entry.length == 0) count_++;
  entry = {offset, result_json.size()};
}

void Journal::publish() {
  PTRT_CHECK(count_ == static_cast<std::int64_t>(entries_.size()));
  const std::string whole = results_path_ + ".tmp";
  std::FILE* out = std::fopen(whole.c_str(), "wb");
  if (out == nullptr) throw_failure("cannot open {}: {}", whole, std::strerror(errno));
  try {
    std::string result;
    for (const Entry& entry : entries_) {
      result.resize(entry.length + 1);
      if (std::fseek(file_, entry.offset, SEEK_SET) != 0 ||
          std::fread(result.data(), 1, entry.length, file_) != entry.length)
        throw_failure("cannot read back {}: {}", path_, std::strerror(errno));
      result[entry.length] = '\n';
      if (std::fwrite(result.data(), 1, result.size(), out) != result.size())
        throw_failure("cannot write {}: {}; finished results are kept in {}", whole, std::strerror(errno),
                      path_);
    }
    sync_to_disk(out, whole);
  } catch (...) {
    // Leave no partial file; the journal holds everything.
    std::fclose(out);
    std::remove(whole.c_str());
    throw;
  }
  std::fclose(out);
  if (std::rename(whole.c_str(), results_path_.c_str()) != 0)
    throw_failure("cannot rename {} to {}: {}", whole, results_path_, std::strerror(errno));
  std::remove(path_.c_str());
}

}  // namespace ptrt
