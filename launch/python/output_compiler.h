// From what a request says of its output (`response_format`, `structured_outputs`, `guided_*`) to an automaton.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_map>

#include "launch/python/python_helper.h"
#include "runtime/requests/byte_automaton.h"

namespace ptrt {

// The fields that an OutputCompiler reads.
inline constexpr const char* kOutputFields[] = {"response_format", "structured_outputs", "guided_json",
                                                "guided_regex", "guided_choice"};

class OutputCompiler {
 public:
  // `helper` must outlive this object.
  explicit OutputCompiler(PythonHelper& helper) : helper_(helper) {}

  // None where the output is any text. `line` as for ChatRenderer::render(). Throws HelperError: invalid_request,
  // unsupported, structured_output_unavailable, structured_output_error.
  OutputConstraint compile(std::string_view line, bool openai);

 private:
  PythonHelper& helper_;
  std::unordered_map<std::string, OutputConstraint> kept_;  // by the helper's answer
};

}  // namespace ptrt
