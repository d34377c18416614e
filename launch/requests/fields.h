// The fields of one JSON object of a request line, read with types and ranges, as the table of fields has them.
#pragma once

#include <bitset>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launch/requests/field_table.h"
#include "runtime/requests/request.h"

namespace ptrt {

// The unknown fields that --ignore-unknown-fields left out, by name, and in how many lines each was.
class IgnoredFields {
 public:
  void add(std::string_view name);
  bool empty() const { return counts_.empty(); }
  // "'foo' (3 lines), 'bar' (1 line)"; the names are cut short.
  std::string text() const;

 private:
  std::map<std::string, std::int64_t, std::less<>> counts_;
  std::int64_t others_ = 0;  // of names beyond those that are kept
};

struct NumberRange {
  double low, high;
  bool above = false;  // low itself is out of it
};

class Fields {
 public:
  // The object must outlive it. Null values are as if they were not there.
  Fields(const nlohmann::json& object, FieldForms form, Task task);

  // Rejects what the table refuses or does not have; unknown ones are noted in `ignored` instead, if it is given.
  void refuse_unsupported(IgnoredFields* ignored) const;
  // Rejects what has not been asked for by now: it has no meaning beside the other fields.
  void refuse_unread() const;

  // Null: not given.
  const nlohmann::json* find(FieldName name) const;
  std::int64_t integer(FieldName name, std::int64_t otherwise, std::int64_t low, std::int64_t high) const;
  std::optional<std::int64_t> integer(FieldName name, std::int64_t low, std::int64_t high) const;
  // A float32, in the range as such.
  float number(FieldName name, float otherwise, const NumberRange& range) const;
  bool flag(FieldName name, bool otherwise = false) const;
  std::optional<std::string> text(FieldName name) const;
  // A string is an array of one where `single`.
  std::vector<std::string> texts(FieldName name, bool single) const;

 private:
  struct Field {
    std::string_view name;
    const nlohmann::json* value;
    const FieldRule* rule;  // null: unknown
    mutable bool is_read = false;
  };

  FieldForms form_;
  std::vector<Field> fields_;  // that the task does not ignore
  // By first row of a name: whether a field of that name is given. Most names asked for are not.
  std::bitset<kFieldTable.size()> given_;
};

}  // namespace ptrt
