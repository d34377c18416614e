#pragma once

#include <string_view>

#include "launch/python/output_compiler.h"
#include "launch/requests/fields.h"
#include "launch/requests/request_line.h"

namespace ptrt {

// What `response_format`, `structured_outputs` or one of `guided_json`, `guided_regex`, `guided_choice` asks for; none
// where they ask for nothing. `text`: the whole line. Without a compiler the line is rejected.
OutputConstraint read_output(const Fields& fields, std::string_view text, const RequestLine& line,
                             OutputCompiler* compiler);

}  // namespace ptrt
