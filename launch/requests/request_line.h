// What the answer to a request line needs, whether the line can be run or not.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "runtime/requests/byte_string.h"

namespace ptrt {

// Why a line cannot be run. It becomes an error line of the results; other lines are not affected.
struct RequestError {
  std::string code;  // "context_length_exceeded", "invalid_json", …
  std::string message;
};

// The error of a line that does not fit the pool, which may have a result with a larger one.
inline constexpr const char* kKvCacheExceeded = "kv_cache_exceeded";

// Whether the request is not at fault but the host, which lacks something or is too busy: codes of such errors end so.
inline bool is_error_of_host(std::string_view code) {
  return code.ends_with("_unavailable");
}

struct RequestLine {
  std::string id;              // of the request; else the 0-based line number
  bool openai = false;         // answered by an OpenAI batch response line
  bool chat = false;           // has messages instead of a prompt
  bool continuation = false;   // scored after a context
  bool echo = false;           // the answer begins with the prompt
  bool token_ids = false;      // OpenAI: the answer has the ids of prompt and output
  bool tokens_as_ids = false;  // OpenAI: log-probabilities name tokens "token_id:N"
  // Alternatives a token that the answer shows of the prompt's log-probabilities; -1: it shows none. With echo the
  // engine may have been asked for more.
  std::int64_t prompt_logprobs = -1;
  std::string model;          // OpenAI: the model named by the request
  std::int64_t request = -1;  // index into RequestFile::requests; -1: error
  RequestError error;
};

// The bytes of a line that runs, for the rank that answers it.
void append_line(std::string& message, const RequestLine& line);
void take_line(ByteReader& bytes, RequestLine& line);

}  // namespace ptrt
