#include "model_io/tokenizer/huggingface/normalizer.h"

#include <array>
#include <utility>

#include "model_io/text/unicode.h"
#include "model_io/tokenizer/huggingface/pattern.h"

namespace ptrt::huggingface {
namespace {

constexpr std::array<std::pair<std::string_view, NormalForm>, 4> kNormalForms{{
    {"NFC", NormalForm::nfc},
    {"NFD", NormalForm::nfd},
    {"NFKC", NormalForm::nfkc},
    {"NFKD", NormalForm::nfkd},
}};

std::string strip(const std::string& text, bool left, bool right) {
  std::size_t begin = 0, end = text.size();
  for (std::size_t at = begin; left && at < end && is_whitespace(next_character(text, at));) begin = at;
  for (std::size_t at = end; right && at > begin && is_whitespace(previous_character(text, at));) end = at;
  return text.substr(begin, end - begin);
}

}  // namespace

void Normalizer::add(const Component& component) {
  const std::string type = component.type();
  for (const auto& [name, form] : kNormalForms) {
    if (type != name) continue;
    component.allow({});
    steps_.push_back([form = form](const std::string& text) { return normalize(form, text); });
    return;
  }
  if (type == "Sequence") {
    component.allow({"normalizers"});
    for (const Component& step : component.children("normalizers")) add(step);
  } else if (type == "Lowercase") {
    component.allow({});
    steps_.push_back([](const std::string& text) { return lowercase(text); });
  } else if (type == "Prepend") {
    component.allow({"prepend"});
    steps_.push_back([prefix = component.text("prepend")](const std::string& text) {
      return text.empty() ? text : prefix + text;
    });
  } else if (type == "Replace") {
    component.allow({"pattern", "content"});
    steps_.push_back([pattern = read_pattern(component), content = component.text("content")](
                         const std::string& text) { return replace_all(text, pattern, content); });
  } else if (type == "Strip") {
    component.allow({"strip_left", "strip_right"});
    steps_.push_back([left = component.flag("strip_left"), right = component.flag("strip_right")](
                         const std::string& text) { return strip(text, left, right); });
  } else {
    component.note_unsupported_type();
  }
}

std::string Normalizer::apply(std::string text) const {
  for (const Step& step : steps_) text = step(text);
  return text;
}

}  // namespace ptrt::huggingface
