#include "launch/python/chat_renderer.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace ptrt {
namespace {

using nlohmann::json;

constexpr PythonHelper::Purpose kPurpose = {"the chat template", "chat_template_error",
                                            "chat_template_unavailable"};

std::string text_of(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace

ChatRenderer::ChatRenderer(PythonHelper& helper, const std::string& chat_template, const std::string& date,
                           const ModelConfig& config, const TokenizerChoice& tokenizer)
    : helper_(helper), has_template_(!chat_template.empty()) {
  json common = {{"kind", "chat"}, {"template", chat_template}, {"date", date}};
  const auto add = [&](const char* key, std::int64_t id) {
    const std::string text =
        tokenizer.tokenizer ? tokenizer.tokenizer->token_text(static_cast<std::int32_t>(id)) : "";
    if (!text.empty()) common[key] = text;
  };
  if (config.bos_token_id) add("bos_token", *config.bos_token_id);
  if (!config.eos_token_ids.empty()) add("eos_token", config.eos_token_ids.front());
  question_ = text_of(common);
  question_.pop_back();
}

std::string ChatRenderer::render(std::string_view line, bool openai) {
  if (!has_template_)
    throw HelperError{"no_chat_template",
                      "the model file has no chat template: --chat-template FILE may give one"};
  const std::string answer =
      helper_.ask(fmt::format("{},\"openai\":{},\"line\":{}}}", question_, openai, line), kPurpose);
  const json parsed = json::parse(answer, nullptr, false);
  if (parsed.is_object() && parsed.contains("text")) return parsed["text"].get<std::string>();
  if (parsed.is_object() && parsed.contains("error"))
    throw HelperError{parsed["error"]["code"].get<std::string>(),
                      parsed["error"]["message"].get<std::string>()};
  throw HelperError{kPurpose.failed, "the chat template gives a text that is not UTF-8"};
}

}  // namespace ptrt
