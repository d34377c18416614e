#include "launch/requests/output_fields.h"

#include <nlohmann/json.hpp>

#include "launch/requests/bad_request.h"

namespace ptrt {

using nlohmann::json;

OutputConstraint read_output(const Fields& fields, std::string_view text, const RequestLine& line,
                             OutputCompiler* compiler) {
  bool asked = false;
  for (const FieldName name : {FieldName("structured_outputs"), FieldName("guided_json"),
                               FieldName("guided_regex"), FieldName("guided_choice")})
    asked |= fields.find(name) != nullptr;
  const json* format = fields.find("response_format");
  asked |= format != nullptr && *format != json{{"type", "text"}};
  if (!asked) return {};
  if (compiler == nullptr) reject("unsupported", "structured output is not supported by this command");
  if (fields.flag("ignore_eos"))
    reject("invalid_request", "'ignore_eos' cannot be with structured output, which ends with eos");
  return compiler->compile(text, line.openai);
}

}  // namespace ptrt
