#include "launch/requests/line_id.h"

#include <nlohmann/json.hpp>

#include "launch/requests/line_json.h"

namespace ptrt {
namespace {

using nlohmann::json;

// Looks at the keys of the outermost object; of keys that come twice the last counts, as in a json value.
class IdFinder final : public nlohmann::json_sax<json> {
 public:
  // As if it were not there.
  bool null() override {
    if (depth_ == 1 && field_ != nullptr) field_->reset();
    return depth_ > 0;
  }
  bool boolean(bool) override { return other_value(); }
  bool number_integer(json::number_integer_t) override { return other_value(); }
  bool number_unsigned(json::number_unsigned_t) override { return other_value(); }
  bool number_float(json::number_float_t, const std::string&) override { return other_value(); }
  bool binary(json::binary_t&) override { return other_value(); }
  bool string(std::string& value) override {
    if (depth_ == 1 && field_ != nullptr) *field_ = {true, std::move(value)};
    return depth_ > 0;
  }
  bool start_object(std::size_t) override { return start(); }
  bool start_array(std::size_t) override { return depth_ > 0 && start(); }
  bool end_object() override { return end(); }
  bool end_array() override { return end(); }
  bool key(std::string& name) override {
    if (depth_ != 1) return true;
    field_ = name == "id" ? &id_ : name == "custom_id" ? &custom_id_ : nullptr;
    openai_ = openai_ || name == "custom_id" || name == "body" || name == "url";
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;
  }

  std::optional<std::string> id(std::int64_t number) const {
    if (openai_) return custom_id_ ? custom_id_->text() : std::nullopt;
    return id_ ? id_->text() : std::to_string(number);
  }

 private:
  struct Field {
    bool is_string = false;
    std::string value = {};
    std::optional<std::string> text() const { return is_string ? std::optional(value) : std::nullopt; }
  };

  // Outside of an object the line is no request.
  bool other_value() {
    if (depth_ == 1 && field_ != nullptr) *field_ = Field{};
    return depth_ > 0;
  }
  bool start() {
    if (depth_ == kDeepestLine) return false;
    if (depth_ > 0) other_value();
    depth_++;
    return true;
  }
  bool end() {
    depth_--;
    return true;
  }

  std::size_t depth_ = 0;
  bool openai_ = false;
  std::optional<Field> id_, custom_id_;
  std::optional<Field>* field_ = nullptr;  // that the next value is of
};

}  // namespace

std::optional<std::string> id_of_line(std::string_view text, std::int64_t number) {
  if (problem_of_bytes(text) != nullptr) return std::nullopt;
  IdFinder finder;
  if (!json::sax_parse(text, &finder)) return std::nullopt;
  return finder.id(number);
}

}  // namespace ptrt
