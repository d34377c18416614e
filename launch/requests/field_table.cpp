#include "launch/requests/field_table.h"

#include <algorithm>
#include <vector>

namespace ptrt {
namespace {

// Letters to insert, remove or replace. Both names are short.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); j++) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); i++) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); j++) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

const FieldRule* find_field(std::string_view name, std::size_t first, FieldForms form) {
  for (std::size_t row = first; row < kFieldTable.size() && kFieldTable[row].name == name; row++)
    if ((kFieldTable[row].forms & form) != 0) return &kFieldTable[row];
  return nullptr;
}

std::string_view similar_field(std::string_view name, FieldForms form) {
  constexpr std::size_t kShortest = 4, kLongest = 40;
  if (name.size() < kShortest || name.size() > kLongest) return {};
  std::size_t least = name.size() < 6 ? 2 : 3;  // no name is meant that is as far
  std::string_view found;
  for (const FieldRule& rule : kFieldTable)
    if ((rule.forms & form) != 0)
      if (const std::size_t distance = edit_distance(name, rule.name); distance < least) {
        least = distance;
        found = rule.name;
      }
  return found;
}

}  // namespace ptrt
