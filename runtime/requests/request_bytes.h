// A request as the bytes of a message between ranks of one program.
#pragma once

#include <string>

#include "runtime/requests/byte_string.h"
#include "runtime/requests/request.h"

namespace ptrt {

void append_request(std::string& message, const Request& request);
Request take_request(ByteReader& bytes);

}  // namespace ptrt
