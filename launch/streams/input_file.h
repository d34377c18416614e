// One file of requests: a plain file, which may be read twice, or a stream, which gives its bytes once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/base/file_descriptor.h"
#include "launch/streams/byte_input.h"

namespace ptrt {

class PieceFile;

// A plain file gives the same bytes at every reading: the first keeps a digest of each piece, and later ones check a
// piece before any of it is given. The file is opened once, so it may be replaced or removed meanwhile; what is
// appended is not read. A stream is "-", standard input, or what is no plain file, such as a pipe.
class InputFile {
 public:
  // Throws bad_input, which names the file. Does not wait for the writer of a pipe.
  explicit InputFile(std::string path);
  InputFile(InputFile&&) noexcept;
  InputFile& operator=(InputFile&&) noexcept;
  ~InputFile();

  const std::string& path() const { return path_; }
  std::string name() const;  // for people
  bool is_stream() const { return file_ == nullptr; }

  // From the start, decoded as the name says; of a stream once. Reading throws bad_input; of a plain file, once the
  // first reading has come to the end, failure where it cannot be read or was changed. One reading at a time.
  std::unique_ptr<ByteInput> open();
  // Of the bytes as they are in the file, and how many. Of a plain file, after the first reading.
  std::uint64_t digest() const;
  std::uint64_t bytes() const;

 private:
  std::string path_;
  std::shared_ptr<PieceFile> file_;  // null: a stream
  FileDescriptor stream_;
};

}  // namespace ptrt
