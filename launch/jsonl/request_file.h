// Requests as JSON lines: the plain form and the OpenAI batch form (docs/SPEC.md, Requests).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model_io/config/model_config.h"
#include "model_io/tokenizer/tokenizer.h"
#include "runtime/job/shard.h"
#include "runtime/serving/request.h"

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
  std::int64_t request = -1;  // index into RequestFile::requests; -1: error, or of another shard
  RequestError error;
};

struct RequestFile {
  std::vector<RequestLine> lines;  // of the whole file; those of other shards have an id at most
  std::vector<Request> requests;   // of the shard's lines without an error, in order
};

struct RequestLimits {
  std::int64_t cached_tokens = 0;  // that fit the KV pool
};

// `text` is the whole file. Throws bad_input when it has no line. `tokenizer` may hold no tokenizer. Of other lines
// than the shard's only the ids are read: an id that was used by any earlier line of the file is an error.
RequestFile parse_requests(const std::string& text, const std::string& path, Task task,
                           const ModelConfig& config, const TokenizerChoice& tokenizer,
                           const RequestLimits& limits, const Shard& shard = {});

}  // namespace ptrt
