#pragma once

#include <string>

#include "driver/random.h"

namespace ptrt::fuzz {

// A change to one field of a protocol buffer, at any depth, with lengths that stay right. One in eight is changed as
// bytes.
std::string mutate_protobuf(const std::string& message, Random& random);

}  // namespace ptrt::fuzz
