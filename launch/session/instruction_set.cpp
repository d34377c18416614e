#include "launch/session/instruction_set.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>

#include "kernels/base/error.h"
#include "kernels/cpu/simd/simd_target.h"
#include "launch/job/process.h"

namespace ptrt {
namespace {

constexpr const char* kLimit = "PTRT_SIMD_TARGET";

std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> found;
  std::istringstream in(text);
  for (std::string word; in >> word;) found.push_back(word);
  return found;
}

}  // namespace

std::vector<std::string> own_instruction_sets() {
  std::vector<std::string> names = simd_targets();
  const char* limit = std::getenv(kLimit);
  if (limit == nullptr || *limit == '\0') return names;
  const auto first = std::ranges::find(names, limit);
  if (first == names.end())
    throw_bad_input("{}={}: this machine runs {}", kLimit, limit, fmt::join(names, ", "));
  names.erase(names.begin(), first);
  return names;
}

std::optional<std::string> best_common(const std::vector<std::vector<std::string>>& ranks) {
  for (const std::string& name : ranks.front())
    if (std::ranges::all_of(ranks, [&](const auto& names) { return std::ranges::count(names, name) > 0; }))
      return name;
  return std::nullopt;
}

void agree_on_instruction_set(JobComm& job) {
  std::string mine;
  all_or_none(job, [&] { mine = fmt::format("{}", fmt::join(own_instruction_sets(), " ")); });
  std::vector<std::vector<std::string>> ranks;
  for (const std::string& text : job.all_gather(mine)) ranks.push_back(words(text));
  all_or_none(job, [&] {
    const auto common = best_common(ranks);
    if (common) return set_simd_target(*common);
    std::string found;
    for (std::size_t r = 0; r < ranks.size(); r++)
      if (std::ranges::find(ranks, ranks[r]) - ranks.begin() == static_cast<std::ptrdiff_t>(r))
        found += fmt::format("; rank {} has {}", r, fmt::join(ranks[r], ", "));
    throw_failure("no instruction set is common to all ranks, use hosts of one architecture{}", found);
  });
}

}  // namespace ptrt
