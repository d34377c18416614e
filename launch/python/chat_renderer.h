// From the messages of a chat request to the text of its prompt, by the chat template of the run.
#pragma once

#include <string>
#include <string_view>

#include "launch/python/python_helper.h"
#include "model_io/config/model_config.h"
#include "model_io/tokenizer/tokenizer.h"

namespace ptrt {

class ChatRenderer {
 public:
  // `chat_template` is Jinja, "" where neither the model nor the command line has one; `date`, YYYY-MM-DD, is what its
  // strftime_now says. The tokenizer has the texts of bos and eos. `helper` must outlive this object.
  ChatRenderer(PythonHelper& helper, const std::string& chat_template, const std::string& date,
               const ModelConfig& config, const TokenizerChoice& tokenizer);

  // The text of the prompt. `line` is the whole request line, valid JSON whose body, or the line itself unless `openai`,
  // has no problem_of_chat(): the order of its keys counts. Throws HelperError: no_chat_template,
  // chat_template_unavailable, chat_template_error, no_python, invalid_request.
  std::string render(std::string_view line, bool openai);

 private:
  PythonHelper& helper_;
  std::string question_;  // of every line, up to the line itself
  bool has_template_;
};

}  // namespace ptrt
