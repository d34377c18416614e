// Results as JSON lines (docs/SPEC.md, Results). Every function returns one JSON object without a newline.
#pragma once

#include <string>
#include <string_view>

#include "launch/requests/request_parser.h"
#include "model_io/tokenizer/tokenizer.h"
#include "runtime/requests/request.h"

namespace ptrt {

// The first two give an error line for a failed completion. In the OpenAI form, code non_finite_logits and those of
// is_error_of_host() are errors of the server. `tokenizer` null: there is no "text".
std::string generate_result(const RequestLine& line, const Request& request, const Completion& completion,
                            const Tokenizer* tokenizer);
std::string score_result(const RequestLine& line, const Request& request, const Completion& completion);
// Whether the result of a line without an error has the OpenAI form.
inline bool is_openai_answer(const RequestLine& line, Task task) {
  return line.openai && task == Task::generate;
}
// Of a line that could not be run.
std::string error_result(const RequestLine& line, std::int64_t number);
// Whether a result is the error of a request that did not fit the KV pool.
bool is_kv_cache_exceeded(std::string_view result_json);
// That, or an error of the host: another run may have a result for it.
bool may_have_result(std::string_view result_json);

}  // namespace ptrt
