#include "launch/requests/chat_fields.h"

#include <nlohmann/json.hpp>
#include <string>

#include "launch/requests/bad_request.h"

namespace ptrt {
namespace {

using nlohmann::json;

const json* find(const json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

void check_content(const json& content, std::size_t message) {
  if (content.is_string()) return;
  if (!content.is_array())
    reject("invalid_request", "'content' of message {} must be a string or an array of parts, found {}",
           message, content.type_name());
  for (const json& part : content) {
    const json* type = part.is_object() ? find(part, "type") : nullptr;
    const json* text = part.is_object() ? find(part, "text") : nullptr;
    if (type == nullptr || !type->is_string())
      reject("invalid_request", "a part of 'content' of message {} has no 'type'", message);
    if (*type != "text")
      reject("unsupported", "'content' of message {} has a part of type \"{}\": only text is supported",
             message, type->get<std::string>());
    if (text == nullptr || !text->is_string())
      reject("invalid_request", "a part of 'content' of message {} has no 'text'", message);
  }
}

void check_message(const json& message, std::size_t number) {
  if (!message.is_object())
    reject("invalid_request", "message {} must be an object, found {}", number, message.type_name());
  const json* role = find(message, "role");
  if (role == nullptr) reject("invalid_request", "message {} has no 'role'", number);
  if (!role->is_string())
    reject("invalid_request", "'role' of message {} must be a string, found {}", number, role->type_name());
  if (const json* calls = find(message, "tool_calls"); calls != nullptr && !calls->is_array())
    reject("invalid_request", "'tool_calls' of message {} must be an array, found {}", number,
           calls->type_name());
  if (const json* content = find(message, "content")) check_content(*content, number);
}

void check_objects(const Fields& fields, FieldName name) {
  const json* list = fields.find(name);
  if (list == nullptr) return;
  if (!list->is_array()) reject_type(name.text(), "an array of objects", *list);
  for (const json& item : *list)
    if (!item.is_object()) reject_type(name.text(), "an array of objects", item);
}

}  // namespace

void check_chat(const Fields& fields) {
  const json* messages = fields.find("messages");
  if (messages == nullptr) reject("invalid_request", "a chat request needs 'messages'");
  if (!messages->is_array()) reject_type("messages", "an array", *messages);
  if (messages->empty()) reject("invalid_request", "'messages' is empty");
  for (std::size_t i = 0; i < messages->size(); i++) check_message((*messages)[i], i);
  check_objects(fields, "tools");
  check_objects(fields, "documents");
  const bool prompted = fields.flag("add_generation_prompt"),
             continued = fields.flag("continue_final_message");
  if (prompted && continued)
    reject("invalid_request", "'add_generation_prompt' and 'continue_final_message' cannot both be true");
  const json* extra = fields.find("chat_template_kwargs");
  if (extra != nullptr && !extra->is_object()) reject_type("chat_template_kwargs", "an object", *extra);
  const json* choice =
      fields.find("tool_choice");  // the model is shown the tools, and nothing enforces their use
  if (choice != nullptr && *choice != "auto" && *choice != "none")
    reject("unsupported", "'tool_choice' is not supported, except as \"auto\" or \"none\"");
}

}  // namespace ptrt
