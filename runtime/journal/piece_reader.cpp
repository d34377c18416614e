#include "runtime/journal/piece_reader.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "kernels/base/error.h"

namespace ptrt {

std::size_t read_from(int descriptor, std::int64_t offset, char* to, std::size_t bytes,
                      const std::string& path) {
  for (;;) {
    const ssize_t got = pread(descriptor, to, bytes, offset);
    if (got >= 0) return static_cast<std::size_t>(got);
    if (errno != EINTR) throw_failure("cannot read {}: {}", path, std::strerror(errno));
  }
}

std::optional<std::string_view> PieceReader::read(std::int64_t offset, std::size_t bytes) {
  joined_.clear();
  for (std::size_t left = bytes;;) {
    const auto& [number, text] = piece(offset / kPieceBytes);
    const auto from = std::min(static_cast<std::size_t>(offset % kPieceBytes), text.size());
    const std::string_view part = std::string_view(text).substr(from, left);
    if (part.size() == bytes) return part;
    joined_ += part;
    left -= part.size();
    offset += std::ssize(part);
    if (left == 0) return joined_;
    if (std::ssize(text) < kPieceBytes) return std::nullopt;
  }
}

const PieceReader::Piece& PieceReader::piece(std::int64_t number) {
  Piece& piece = pieces_[static_cast<std::size_t>(number) % kPieces];
  if (piece.number == number && std::ssize(piece.bytes) == kPieceBytes) return piece;
  piece.number = number;
  piece.bytes.resize(kPieceBytes);
  std::size_t got = 0;
  while (got < piece.bytes.size()) {
    const std::size_t more = read_from(descriptor_, number * kPieceBytes + static_cast<std::int64_t>(got),
                                       piece.bytes.data() + got, piece.bytes.size() - got, path_);
    if (more == 0) break;
    got += more;
  }
  piece.bytes.resize(got);
  return piece;
}

}  // namespace ptrt
