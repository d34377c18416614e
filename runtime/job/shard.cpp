#include "runtime/job/shard.h"

#include <charconv>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

std::optional<std::int64_t> parse_count(std::string_view text) {
  std::int64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stop == end && value >= 0 ? std::optional(value) : std::nullopt;
}

}  // namespace

std::string Shard::text() const {
  return fmt::format("{}/{}", index, count);
}

std::optional<Shard> parse_shard(std::string_view text) {
  const std::size_t slash = text.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  const auto index = parse_count(text.substr(0, slash)), count = parse_count(text.substr(slash + 1));
  if (!index || !count || *count > kMostShards || *index >= *count) return std::nullopt;
  return Shard{*index, *count};
}

Shard shard_of_slurm_array(const std::function<const char*(const char*)>& variable) {
  const auto number = [&](const std::string& name) {
    const char* text = variable(("SLURM_ARRAY_TASK_" + name).c_str());
    if (text == nullptr)
      throw_bad_input(
          "--shard slurm: SLURM_ARRAY_TASK_{} is not set: this is no task of a job array (`sbatch "
          "--array=0-3`); `--shard I/N` needs none",
          name);
    const auto value = parse_count(text);
    if (!value) throw_bad_input("--shard slurm: SLURM_ARRAY_TASK_{} is '{}', which is no number", name, text);
    return *value;
  };
  const std::int64_t id = number("ID"), first = number("MIN"), step = number("STEP"), count = number("COUNT");
  const bool even = step > 0 && count > 0 && count <= kMostShards && id >= first && (id - first) % step == 0;
  const Shard shard{even ? (id - first) / step : 0, count};
  if (!even || shard.index >= count)
    throw_bad_input(
        "--shard slurm: task {} is none of the {} tasks from {} in steps of {} that SLURM_ARRAY_TASK_MIN, "
        "_STEP "
        "and _COUNT tell of: give the array as one range, such as --array=0-3",
        id, count, first, step);
  const char* last = variable("SLURM_ARRAY_TASK_MAX");
  if (last != nullptr && parse_count(last) != first + (count - 1) * step)
    throw_bad_input(
        "--shard slurm: the array's {} tasks do not reach from {} to {} in steps of {}: give it as one "
        "range, "
        "such as --array=0-3",
        count, first, last, step);
  return shard;
}

}  // namespace ptrt
