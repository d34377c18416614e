#include "launch/streams/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "launch/streams/compression.h"
#include "launch/streams/read_ahead.h"

namespace ptrt {

// The open file, and what its first reading found.
class PieceFile {
 public:
  static constexpr std::size_t kPiece = std::size_t{256} << 10;

  PieceFile(std::string path, FileDescriptor file)
      : path_(std::move(path)), file_(std::move(file)), whole_(XXH3_createState()) {
    XXH3_64bits_reset(whole_);
  }
  ~PieceFile() { XXH3_freeState(whole_); }
  PieceFile(const PieceFile&) = delete;
  PieceFile& operator=(const PieceFile&) = delete;

  // The bytes of piece `number`, fewer at the end of the file. Reads into `to`, which has room for a piece.
  std::size_t read(std::size_t number, char* to) {
    const std::size_t start = number * kPiece;
    const std::size_t wanted = known_ ? std::min(kPiece, bytes_ - std::min(bytes_, start)) : kPiece;
    std::size_t got = 0;
    while (got < wanted) {
      const ssize_t more = ::pread(file_.get(), to + got, wanted - got, static_cast<off_t>(start + got));
      if (more < 0 && errno == EINTR) continue;
      if (more < 0) fail(std::strerror(errno));
      if (more == 0) break;
      got += static_cast<std::size_t>(more);
    }
    if (known_)
      check(number, got, wanted, to);
    else
      keep(got, to);
    return got;
  }
  std::uint64_t digest() const {
    PTRT_CHECK(known_);
    return XXH3_64bits_digest(whole_);
  }
  std::uint64_t bytes() const { return bytes_; }

 private:
  void keep(std::size_t got, const char* bytes) {
    bytes_ += got;
    if (got > 0) {
      digests_.push_back(XXH3_64bits(bytes, got));
      XXH3_64bits_update(whole_, bytes, got);
    }
    known_ = got < kPiece;
  }
  void check(std::size_t number, std::size_t got, std::size_t wanted, const char* bytes) const {
    if (got < wanted || (got > 0 && XXH3_64bits(bytes, got) != digests_[number]))
      throw_failure("{} was changed while this run was going: the journal has the results of what it was",
                    path_);
  }
  [[noreturn]] void fail(const char* reason) const {
    if (known_) throw_failure("cannot read the requests {}: {}", path_, reason);
    throw_bad_input("cannot read the requests {}: {}", path_, reason);
  }

  std::string path_;
  FileDescriptor file_;
  bool known_ = false;  // to the end
  std::size_t bytes_ = 0;
  std::vector<std::uint64_t> digests_;  // of the pieces
  XXH3_state_t* whole_;
};

namespace {

class PieceInput final : public ByteInput {
 public:
  explicit PieceInput(std::shared_ptr<PieceFile> file)
      : file_(std::move(file)), piece_(PieceFile::kPiece, '\0') {}
  std::size_t read(char* to, std::size_t bytes) override {
    if (at_ == end_ && !at_end_) {
      at_ = 0;
      end_ = file_->read(next_++, piece_.data());
      at_end_ = end_ < piece_.size();
    }
    const std::size_t count = std::min(bytes, end_ - at_);
    std::memcpy(to, piece_.data() + at_, count);
    at_ += count;
    return count;
  }

 private:
  std::shared_ptr<PieceFile> file_;
  std::string piece_;
  std::size_t next_ = 0, at_ = 0, end_ = 0;  // the next piece; what is left of this one
  bool at_end_ = false;
};

}  // namespace

InputFile::InputFile(std::string path) : path_(std::move(path)) {
  if (path_ == "-") {
    stream_ = FileDescriptor(fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0));
    if (!stream_) throw_bad_input("cannot read {}: {}", name(), std::strerror(errno));
    return;
  }
  // Of a pipe without a writer, open() would wait for one.
  FileDescriptor file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat status;
  if (!file || fstat(file.get(), &status) != 0)
    throw_bad_input("cannot read the requests {}: {}", path_, std::strerror(errno));
  if (S_ISDIR(status.st_mode)) throw_bad_input("cannot read the requests {}: it is a directory", path_);
  if (S_ISREG(status.st_mode))
    file_ = std::make_shared<PieceFile>(path_, std::move(file));
  else
    stream_ = std::move(file);
}

InputFile::InputFile(InputFile&&) noexcept = default;
InputFile& InputFile::operator=(InputFile&&) noexcept = default;
InputFile::~InputFile() = default;

std::string InputFile::name() const {
  return path_ == "-" ? "standard input" : path_;
}

std::unique_ptr<ByteInput> InputFile::open() {
  const Compression compression = compression_of(path_);
  if (file_ != nullptr) return decoded(std::make_unique<PieceInput>(file_), compression, path_);
  PTRT_CHECK(stream_);
  return std::make_unique<ReadAhead>(std::move(stream_), name(), compression);
}

std::uint64_t InputFile::digest() const {
  return file_->digest();
}

std::uint64_t InputFile::bytes() const {
  return file_->bytes();
}

}  // namespace ptrt
