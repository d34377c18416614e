// The part of a request file that one of several jobs runs (--shard).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace ptrt {

// Of the whole file's lines those with number % count = index, which are numbered from 0 as they come.
struct Shard {
  std::int64_t index = 0, count = 1;

  bool has(std::int64_t line) const { return line % count == index; }
  std::int64_t lines_of(std::int64_t file_lines) const {
    return file_lines > index ? (file_lines - index - 1) / count + 1 : 0;
  }
  // A line of the shard, by its number in the file and in the shard.
  std::int64_t place_of(std::int64_t line) const { return line / count; }
  std::int64_t line_at(std::int64_t place) const { return place * count + index; }
  // "0/4".
  std::string text() const;

  bool operator==(const Shard&) const = default;
};

inline constexpr std::int64_t kMostShards = 1 << 20;

// "I/N", decimal, I from 0 to N - 1; none for anything else.
std::optional<Shard> parse_shard(std::string_view text);

// This task's shard of a Slurm job array: its place among the array's tasks. Throws bad_input where the
// variables are missing or the array is no even row of numbers. `variable` is getenv.
Shard shard_of_slurm_array(const std::function<const char*(const char*)>& variable);

}  // namespace ptrt
