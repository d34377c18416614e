#pragma once

#include "launch/requests/fields.h"

namespace ptrt {

// Rejects a chat line whose `messages`, `tools`, `documents`, `add_generation_prompt`, `continue_final_message`,
// `chat_template_kwargs` or `tool_choice` cannot be rendered.
void check_chat(const Fields& fields);

}  // namespace ptrt
