// Reads short runs of bytes of a file at many places: keeps pieces of it, so that runs that lie close together
// cost one read. For files that grow only at their end.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace ptrt {

// Up to `bytes` bytes at `offset`, as pread(); 0 at the end. Throws failure, which names `path`.
std::size_t read_from(int descriptor, std::int64_t offset, char* to, std::size_t bytes,
                      const std::string& path);

class PieceReader {
 public:
  // The file must stay open; `path` is for messages.
  PieceReader(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}

  // Valid until the next call. None where the file ends before.
  std::optional<std::string_view> read(std::int64_t offset, std::size_t bytes);

 private:
  static constexpr std::int64_t kPieceBytes = std::int64_t{64} << 10;
  static constexpr std::size_t kPieces = 16;  // kept, each at one place of its own

  struct Piece {
    std::int64_t number = -1;  // in the file
    std::string bytes;         // fewer than kPieceBytes at the file's end
  };
  const Piece& piece(std::int64_t number);

  int descriptor_;
  std::string path_;
  std::array<Piece, kPieces> pieces_;
  std::string joined_;  // of a run in several pieces
};

}  // namespace ptrt
