#pragma once

#include <cstddef>

namespace ptrt {

// Bytes [begin, end) of a text.
struct Span {
  std::size_t begin = 0;
  std::size_t end = 0;
};

}  // namespace ptrt
