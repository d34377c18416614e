// Request lines, plain and of an OpenAI batch (docs/SPEC.md, Requests).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "launch/requests/fields.h"
#include "launch/requests/prompt_reader.h"
#include "launch/requests/request_line.h"
#include "model_io/config/model_config.h"
#include "model_io/tokenizer/tokenizer.h"
#include "runtime/requests/request.h"

namespace ptrt {

struct RequestLimits {
  std::int64_t cached_tokens = 0;  // that fit the KV pool
};

// The lines of one file, in order. References must outlive it; `tokenizer` may hold no tokenizer.
class RequestParser {
 public:
  // `lines`: of the file, where that is known; it saves memory.
  RequestParser(Task task, const ModelConfig& config, const TokenizerChoice& tokenizer,
                const RequestLimits& limits, std::int64_t lines = 0, const RequestHelpers& helpers = {});
  // From now on, unknown fields are noted there instead of refused. It must outlive the parser.
  void ignore_unknown_fields(IgnoredFields& ignored);
  RequestParser(RequestParser&&) noexcept;
  ~RequestParser();

  // The next line. False where it cannot be run, and line.error says why. Throws HelperStopped.
  bool parse(std::string_view text, std::int64_t number, RequestLine& line, Request& request);
  // A line that is not to be run here; its id is an error in later ones all the same.
  void skip(std::string_view text, std::int64_t number);

 private:
  class Lines;
  std::unique_ptr<Lines> lines_;
};

struct RequestFile {
  std::vector<RequestLine> lines;  // a blank one has neither a request nor an error
  std::vector<Request> requests;   // of the lines without an error, in order
};

// `text` is the whole file. Throws bad_input when it has no line.
RequestFile parse_requests(const std::string& text, const std::string& path, Task task,
                           const ModelConfig& config, const TokenizerChoice& tokenizer,
                           const RequestLimits& limits, const RequestHelpers& helpers = {});

}  // namespace ptrt
