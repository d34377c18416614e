// The tokens that a request line gives, as ids or as text.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "launch/python/chat_renderer.h"
#include "launch/python/output_compiler.h"
#include "launch/requests/fields.h"
#include "launch/requests/request_line.h"
#include "model_io/config/model_config.h"
#include "model_io/tokenizer/tokenizer.h"

namespace ptrt {

// What some lines need beside the tokenizer. Null: such a line is refused.
struct RequestHelpers {
  ChatRenderer* chat = nullptr;
  OutputCompiler* output = nullptr;
};

// References must outlive it; `tokenizer` may hold no tokenizer. What cannot be read is a BadRequest.
class PromptReader {
 public:
  PromptReader(const ModelConfig& config, const TokenizerChoice& tokenizer,
               const RequestHelpers& helpers = {})
      : config_(config), tokenizer_(tokenizer), helpers_(helpers) {}

  // Sets the request's tokens, cut as the line asks, and where scoring starts. `max_tokens`: for which room is
  // left where the prompt is cut to what fits. `text`: the whole line.
  void read(const Fields& fields, std::string_view text, Task task, std::int64_t max_tokens,
            RequestLine& line, Request& request) const;

  // Of an array; `key` names it in messages.
  std::vector<std::int32_t> token_ids(std::string_view key, const nlohmann::json& array) const;
  // Rejects the line where the model has no tokenizer; `why` ends the message.
  void need_tokenizer(std::string_view why) const;
  // Ids of a text, without bos.
  std::vector<std::int32_t> encode(std::string_view key, const std::string& text) const;

 private:
  std::vector<std::int32_t> chat_tokens(const Fields& fields, std::string_view text,
                                        const RequestLine& line) const;
  std::vector<std::int32_t> prompt_tokens(const Fields& fields, const RequestLine& line) const;
  std::vector<std::int32_t> prompt_array(const nlohmann::json& prompt, bool add_bos) const;
  std::vector<std::int32_t> prompt_text(std::string_view key, const std::string& text, bool add_bos) const;
  void read_continuation(const Fields& fields, Request& request) const;
  void truncate(const Fields& fields, std::int64_t max_tokens, Request& request) const;

  const ModelConfig& config_;
  const TokenizerChoice& tokenizer_;
  RequestHelpers helpers_;
};

}  // namespace ptrt
