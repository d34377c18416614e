// A file mapped into memory: its pages are those of the page cache, which all processes of a host
// share.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace ptrt {

// Where datasets that are to be mapped begin in a file: at multiples of this.
inline constexpr std::size_t kMapAlignment = 4096;

class FileMap {
 public:
  // `descriptor` must be open whenever bytes() or part() is called; `path` is for messages.
  FileMap(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}

  // [offset, offset + bytes) of the file, read-only; the mapping lives as long as any such pointer.
  // The first call maps the file as a whole, which touches none of its pages. Null where the file
  // cannot be mapped: it may still be read. Throws bad_input where it ends before; `dataset` is for
  // that message. A file that is made shorter while it is mapped ends the process (SIGBUS). One
  // thread at a time.
  std::shared_ptr<const std::byte> bytes(std::size_t offset, std::size_t bytes, std::string_view dataset);
  // The same in a separate mapping of just the pages of these bytes.
  std::shared_ptr<const std::byte> part(std::size_t offset, std::size_t bytes, std::string_view dataset);

 private:
  void find_size();
  void check(std::size_t offset, std::size_t bytes, std::string_view dataset) const;

  int descriptor_;
  std::string path_;
  bool sized_ = false, tried_ = false;
  std::shared_ptr<const std::byte> data_;  // null before, and where it cannot be mapped
  std::size_t size_ = 0;
};

}  // namespace ptrt
