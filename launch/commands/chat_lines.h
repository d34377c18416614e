// What the chat lines of a run share: the template, the date that it may ask for, and who renders them.
#pragma once

#include <optional>
#include <string>

#include "launch/options/command_options.h"
#include "launch/python/chat_renderer.h"
#include "launch/python/output_compiler.h"
#include "launch/session/model_source.h"

namespace ptrt {

// On rank 0, which alone reads requests.
class ChatLines {
 public:
  // Takes the template from --chat-template, else from the model. `expected`: the file may have chat lines. The date,
  // where there is none on the command line, is that of the run which is resumed, else today. Throws bad_input: no such
  // file, or a shard whose template asks for a date and has none.
  ChatLines(const BatchOptions& options, const ModelSource& model, bool expected);

  // To be added to what the results depend on: "" where no chat line is expected, "-chat:<digest of the template>", and
  // where that asks for a date "-chat:<digest>:<date>".
  std::string identity() const;
  ChatRenderer& renderer() { return renderer_; }
  // Structured output, of chats and others, needs the same Python process.
  OutputCompiler& outputs() { return outputs_; }

 private:
  std::string template_;
  bool expected_, dated_;
  std::string date_;
  PythonHelper helper_;
  ChatRenderer renderer_;
  OutputCompiler outputs_;
};

// The date in a digest of which identity() is a part.
std::optional<std::string> chat_date_of(const std::string& digest);

}  // namespace ptrt
