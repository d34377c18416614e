// Requests as JSON lines: the plain form and the OpenAI batch form (docs/SPEC.md, Requests).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model_io/config/model_config.h"
#include "model_io/tokenizer/tokenizer.h"
#include "runtime/requests/request.h"

namespace ptrt {

// Why a line cannot be run. It becomes an error line of the results; other lines are not affected.
struct RequestError {
  std::string code;  // "context_length_exceeded", "invalid_json", …
  std::string message;
};

// What the answer to a line needs, whether the line can be run or not.
struct RequestLine {
  std::string id;             // of the request; else the 0-based line number
  bool openai = false;        // answered by an OpenAI batch response line
  bool continuation = false;  // scored after a context
  std::string model;          // OpenAI: the model named by the request
  std::int64_t request = -1;  // index into RequestFile::requests; -1: error
  RequestError error;
};

struct RequestLimits {
  std::int64_t cached_tokens = 0;  // that fit the KV pool
};

// The error of a line that does not fit the pool, which may have a result with a larger one.
inline constexpr const char* kKvCacheExceeded = "kv_cache_exceeded";

// The lines of one file, in order. References must outlive it; `tokenizer` may hold no tokenizer.
class RequestParser {
 public:
  // `lines`: of the file, where that is known; it saves memory.
  RequestParser(Task task, const ModelConfig& config, const TokenizerChoice& tokenizer,
                const RequestLimits& limits, std::int64_t lines = 0);
  RequestParser(RequestParser&&) noexcept;
  ~RequestParser();

  // The next line. False where it cannot be run, and line.error says why.
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
                           const RequestLimits& limits);

}  // namespace ptrt
