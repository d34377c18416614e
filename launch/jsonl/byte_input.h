// The bytes of a request file, in order, from any kind of file.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace ptrt {

class ByteInput {
 public:
  virtual ~ByteInput() = default;
  // Up to `bytes` more; 0 at the end.
  virtual std::size_t read(char* to, std::size_t bytes) = 0;
};

// A file that is read twice: once for its digest, once for its lines. What cannot be read twice, such as a
// pipe, is kept in memory.
class RequestInput {
 public:
  // Throws bad_input, which names the file.
  explicit RequestInput(std::string path);
  // From the start. Throws bad_input.
  std::unique_ptr<ByteInput> open() const;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  bool in_memory_ = false;
  std::string text_;  // of a file that is in memory
};

}  // namespace ptrt
