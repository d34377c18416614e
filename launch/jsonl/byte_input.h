// The bytes of a request file, in order, from any kind of file.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace ptrt {

class PieceFile;

class ByteInput {
 public:
  virtual ~ByteInput() = default;
  // Up to `bytes` more; 0 at the end.
  virtual std::size_t read(char* to, std::size_t bytes) = 0;
};

// A file that is read twice, once for its digest and once for its lines, and gives the same bytes both times: the first
// reading keeps a digest of each piece, and later ones check a piece before any of it is given. The file is opened once,
// so it may be replaced or removed meanwhile; what is appended is not read. What cannot be read twice, such as a pipe, is
// kept in memory.
class RequestInput {
 public:
  // Throws bad_input, which names the file.
  explicit RequestInput(std::string path);
  // From the start. Reading throws bad_input at first; once the first reading has come to the end, failure where the
  // file cannot be read or was changed. One reading at a time.
  std::unique_ptr<ByteInput> open() const;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::shared_ptr<PieceFile> file_;  // null: the text is in memory
  std::string text_;
};

}  // namespace ptrt
