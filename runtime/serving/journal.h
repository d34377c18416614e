// The journal RESULTS.jsonl.partial: finished results in the order they finish, keyed by request
// line, so that a run that ended early can be resumed. Its first line holds a digest of the
// requests, the model and the options that change results.
//
//   {"ptrt_journal":1,"digest":"…","requests":N}
//   {"line":7,"result":{…}}
//
// Only rank 0 uses it. When the results are complete they are sorted, written to a temporary file,
// synced and renamed.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace ptrt {

class Journal {
 public:
  // Checks what can be checked before any work: the directory exists and is writable, the results
  // path is no directory, and there is no journal unless `resume`. Throws bad_input.
  static void check_output(const std::string& results_path, bool resume);

  // Starts a journal, or continues an existing one if `resume`: drops a torn last line, and throws
  // bad_input for another digest or a damaged line.
  Journal(const std::string& results_path, const std::string& digest, std::int64_t requests, bool resume);
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  const std::string& path() const { return path_; }
  bool has(std::int64_t line) const { return entries_[static_cast<std::size_t>(line)].length > 0; }
  std::int64_t count() const { return count_; }

  // Appends and flushes one result (a JSON object without newlines). Throws failure when it cannot
  // be written.
  void append(std::int64_t line, const std::string& result_json);
  // Requires a result for every line. Writes the results under their own name and removes the
  // journal. Throws failure when that fails; the journal then stays.
  void publish();

 private:
  struct Entry {
    long offset = 0;         // of the result's JSON in the journal
    std::size_t length = 0;  // 0: no result yet
  };
  void start(const std::string& digest, std::int64_t requests);
  void read_back(const std::string& digest, std::int64_t requests);
  void write_line(const std::string& text);

  std::string results_path_, path_;
  std::FILE* file_ = nullptr;
  long end_ = 0;  // bytes in the journal
  std::int64_t count_ = 0;
  std::vector<Entry> entries_;  // by request line
};

}  // namespace ptrt
