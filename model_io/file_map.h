// A file mapped into memory, so that its pages are those of the page cache and every process of a host shares
// them.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <utility>

namespace ptrt {

// Where datasets that are to be mapped begin in a file: at multiples of this.
inline constexpr std::size_t kMapAlignment = 4096;

class FileMap {
 public:
  // `descriptor` is open as long as bytes() is called; `path` is for messages.
  FileMap(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}

  // [offset, offset + bytes) of the file, read-only; the mapping lives as long as any such pointer. The first
  // call maps the file as a whole, which touches none of its pages. Throws bad_input where the file ends
  // before, failure where it cannot be mapped. A file that is made shorter while it is mapped ends the
  // process (SIGBUS). One thread at a time.
  std::shared_ptr<const std::byte> bytes(std::size_t offset, std::size_t bytes);

 private:
  void map();

  int descriptor_;
  std::string path_;
  std::shared_ptr<const std::byte> data_;
  std::size_t size_ = 0;
};

}  // namespace ptrt
