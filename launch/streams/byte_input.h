// Bytes of a file, in order, from any kind of file.
#pragma once

#include <cstddef>

namespace ptrt {

class ByteInput {
 public:
  virtual ~ByteInput() = default;
  // Up to `bytes` more; 0 at the end. Waits for them unless ready().
  virtual std::size_t read(char* to, std::size_t bytes) = 0;
  // Whether read() returns without waiting for another program.
  virtual bool ready() { return true; }
};

}  // namespace ptrt
