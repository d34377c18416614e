#include "launch/jsonl/byte_input.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/base/file_descriptor.h"
#include "kernels/base/files.h"

namespace ptrt {
namespace {

class FileInput final : public ByteInput {
 public:
  explicit FileInput(const std::string& path) : path_(path), file_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (!file_) throw_bad_input("cannot read the requests {}: {}", path_, std::strerror(errno));
  }
  std::size_t read(char* to, std::size_t bytes) override {
    for (;;) {
      const ssize_t got = ::read(file_.get(), to, bytes);
      if (got >= 0) return static_cast<std::size_t>(got);
      if (errno != EINTR) throw_bad_input("cannot read the requests {}: {}", path_, std::strerror(errno));
    }
  }

 private:
  std::string path_;
  FileDescriptor file_;
};

class TextInput final : public ByteInput {
 public:
  explicit TextInput(std::string_view text) : left_(text) {}
  std::size_t read(char* to, std::size_t bytes) override {
    const std::size_t count = std::min(bytes, left_.size());
    std::memcpy(to, left_.data(), count);
    left_.remove_prefix(count);
    return count;
  }

 private:
  std::string_view left_;
};

}  // namespace

RequestInput::RequestInput(std::string path) : path_(std::move(path)) {
  struct stat status;
  in_memory_ = stat(path_.c_str(), &status) != 0 || !S_ISREG(status.st_mode);
  if (in_memory_) text_ = read_text_file(path_, "the requests");
}

std::unique_ptr<ByteInput> RequestInput::open() const {
  if (in_memory_) return std::make_unique<TextInput>(text_);
  return std::make_unique<FileInput>(path_);
}

}  // namespace ptrt
