// From what a request says of its output (`response_format`, `structured_outputs`, `guided_*`) to an automaton.
#pragma once

#include <cstddef>
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
  static constexpr std::size_t kMostBytes = std::size_t{64} << 20;

  // `helper` must outlive this object. Automata that requests have asked for, with the answers that they were made
  // of, are kept up to about `most_bytes`.
  explicit OutputCompiler(PythonHelper& helper, std::size_t most_bytes = kMostBytes)
      : helper_(helper), most_bytes_(most_bytes) {}

  // None where the output is any text. `line` as for ChatRenderer::render(). Throws HelperError: invalid_request,
  // unsupported, structured_output_unavailable, structured_output_error.
  OutputConstraint compile(std::string_view line, bool openai);
  std::size_t kept_bytes() const { return kept_bytes_; }

 private:
  PythonHelper& helper_;
  std::size_t most_bytes_;
  std::unordered_map<std::string, OutputConstraint> kept_;  // by the helper's answer
  std::size_t kept_bytes_ = 0;
};

}  // namespace ptrt
