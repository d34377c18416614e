#pragma once

#include <string>

#include "driver/random.h"

namespace ptrt::fuzz {

// One to four small changes: bits, bytes, runs removed, doubled, moved; interesting bytes and numbers.
std::string change_bytes(std::string input, Random& random);

}  // namespace ptrt::fuzz
