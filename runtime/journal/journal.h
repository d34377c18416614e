// The journal RESULTS.jsonl.partial: finished results in the order they finish, keyed by request
// line, so that a run that ended early can be resumed (text: journal_format.h). Its first line holds a
// digest of the requests, the model and the options that change results.
//
// Only rank 0 uses it. When the results are complete they are sorted, written to a temporary file,
// synced and renamed. Nothing but a torn last line is ever cut off, and no file is removed that this
// object does not hold open.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/file_descriptor.h"
#include "runtime/journal/finished_run.h"
#include "runtime/journal/journal_format.h"
#include "runtime/journal/piece_reader.h"

namespace ptrt {

std::string journal_path(const std::string& results_path);

struct JournalOptions {
  // Results of an existing journal that this says are taken as not there: they may be others today.
  std::function<bool(std::string_view result_json)> runs_again = {};
  std::int64_t places = 0;  // lines are numbered below this, some without a request; 0: as many as requests
  bool unordered = false;   // results are published in the order in which they finished
  // What the results' file holds of the next part of their text, `last` being the last one; empty: the text itself.
  std::function<std::string(std::string_view text, bool last)> encode = {};
};

class Journal {
 public:
  // Whether there is anything at the name of the journal.
  static bool exists(const std::string& results_path);
  // The digest of the run whose journal this is, or whose results these are; none where neither says so.
  static std::optional<std::string> digest_at(const std::string& results_path);
  // Checks what can be checked before any work: the directory exists and is writable, what is at the
  // results' name is a plain file or a link to one, no run that is still going uses the journal, there is
  // none unless `resume`, and what publish() would replace is this program's. Throws bad_input.
  static void check_output(const std::string& results_path, bool resume);

  // Starts a journal, or continues an existing one if `resume`: checks every line and drops a torn
  // last one. Throws bad_input, with the file as it was, for another digest and for whatever this
  // class did not write.
  Journal(const std::string& results_path, const std::string& digest, std::int64_t requests, bool resume,
          JournalOptions options = {});
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  const std::string& path() const { return path_; }
  bool has(std::int64_t line) const { return entries_[static_cast<std::size_t>(line)].bytes > 0; }
  std::int64_t count() const { return count_; }

  // A result: a JSON object without newlines.
  struct Result {
    std::int64_t line = 0;
    std::string_view json;
  };
  // Appends results to the file, in one write: after a crash of the process all are there, after one of the
  // host what its system had stored. Throws failure when they cannot be written, or when something else has
  // written to the file or removed it.
  void append(std::span<const Result> results);
  void append(std::int64_t line, std::string_view result_json) {
    append(std::array{Result{line, result_json}});
  }
  // The result of a line that has one, read back. Throws failure where another program has changed it.
  std::string result(std::int64_t line) const;
  // Requires a result for every request. Reads all of them back and checks them, writes the results under
  // their own name, says in RESULTS.jsonl.done what they are, and removes the journal. Throws
  // failure when that fails; the journal then stays.
  // `before` is called, once, before any file gets its name: it may write what goes with the results, and add
  // to what is said of them.
  void publish(const std::function<void(FinishedRun&)>& before = {});
  // The same with a text, made of the results, in their place.
  void publish(std::string_view text);

 private:
  struct Entry {
    std::int64_t offset = 0;  // of the journal's line
    std::int64_t bytes = 0;   // of it, without the line break; 0: no result yet
  };
  void open_existing();
  void open_new();
  void lock() const;
  void read_back();
  void read_line(std::string_view text, std::int64_t number);
  void write(std::string_view text);
  void check_size() const;
  void check_name() const;
  void look_at_name();
  bool is_at_its_name() const;
  // A step of publish() that writes: its errors are failures that name the journal.
  void on_disk(const std::function<void()>& write) const;
  void publish_pieces(const std::function<void(std::int64_t line, std::string& text)>& add,
                      const std::function<void(FinishedRun&)>& before = {});
  // Lines that have a result, in the order of the results' file.
  void for_each_published(const std::function<void(std::int64_t line)>& visit) const;
  // `reader` keeps pieces of the journal: results that follow each other in it cost one read.
  std::string_view read_entry(std::int64_t line, PieceReader& reader) const;

  std::string results_path_, path_;
  JournalHeader header_;
  JournalLineFormat format_;
  JournalOptions options_;
  FileDescriptor file_;
  std::int64_t end_ = 0;  // bytes in the journal
  std::int64_t count_ = 0;
  std::vector<Entry> entries_;                    // by request line
  std::string text_;                              // of the lines being appended
  std::chrono::steady_clock::time_point looked_;  // at the file's name
};

}  // namespace ptrt
