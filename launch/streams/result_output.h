// Where the results of a run go that has no journal: standard output, or a file that gets its name at the end. They are
// written as soon as those of all earlier lines are, or unordered as they come.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "kernels/base/output_file.h"

namespace ptrt {

// Standard output, whose reader may be slow: waits for it, and counts that as progress.
class StandardOutput {
 public:
  // Once `stop_requested` a reader that takes nothing is waited for some seconds more.
  explicit StandardOutput(std::function<bool()> stop_requested)
      : stop_requested_(std::move(stop_requested)) {}
  void write(std::string_view text);  // throws failure

 private:
  void wait_for_room();

  std::function<bool()> stop_requested_;
};

class ResultOutput {
 public:
  struct Options {
    bool unordered = false;
    std::function<bool()> stop_requested = [] { return false; };
    std::size_t most_held = std::size_t{64} << 20;    // bytes of results that wait for an earlier line's
    std::int64_t most_lines = std::int64_t{1} << 16;  // begun and not written
  };
  // `path`: "-" is standard output. Throws bad_input.
  ResultOutput(std::string path, Options options);
  ResultOutput(const ResultOutput&) = delete;
  ResultOutput& operator=(const ResultOutput&) = delete;

  // A line that will have a result; in ascending order.
  void expect(std::int64_t line);
  // A result without a line break. write() then writes what can be written.
  void add(std::int64_t line, std::string_view json);
  void write();

  // Whether so much waits for an earlier line that no more lines should be begun.
  bool is_full() const {
    return held_bytes_ > options_.most_held || outstanding_ + std::ssize(held_) >= options_.most_lines;
  }
  std::int64_t count() const { return count_; }       // of results added
  bool has_all() const { return outstanding_ == 0; }  // that are expected

  // Where all are there: gives the file its name.
  void publish();
  // At an early end: writes what waits, in the order of lines, and returns the name of the file where the results
  // are; empty: standard output has them, or there are none.
  std::string end_early();

 private:
  void put(std::string_view text);
  void compress(const std::string& plain);

  std::string path_;
  Options options_;
  std::optional<StandardOutput> standard_;
  std::optional<OutputFile> file_;     // plain, under a temporary name
  std::deque<std::int64_t> expected_;  // lines without a written result
  std::unordered_map<std::int64_t, std::string> held_;
  std::size_t held_bytes_ = 0;
  std::int64_t count_ = 0;
  std::int64_t outstanding_ = 0;  // lines without a result
  std::string text_;              // to be written
};

}  // namespace ptrt
