#include "model_io/file_map.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "kernels/error.h"

namespace ptrt {

std::shared_ptr<const std::byte> FileMap::bytes(std::size_t offset, std::size_t bytes,
                                                std::string_view dataset) {
  if (!tried_) map();
  if (data_ == nullptr) return nullptr;
  if (offset > size_ || bytes > size_ - offset)
    throw_bad_input("{}: truncated: it has {} bytes, and dataset {} takes {} from byte {} on", path_, size_,
                    dataset, bytes, offset);
  return {data_, data_.get() + offset};
}

// File systems without a page cache and limits of the address space refuse to map what can be read.
void FileMap::map() {
  tried_ = true;
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0)
    throw_failure("{}: cannot tell its size: {}", path_, std::strerror(errno));
  size_ = static_cast<std::size_t>(status.st_size);
  void* base = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor_, 0);
  if (base == MAP_FAILED) return;
  // Advice only: pages that are not in the cache yet are read in pieces of 2 MiB and mapped as such.
  ::madvise(base, size_, MADV_HUGEPAGE);
  data_ = {static_cast<const std::byte*>(base),
           [base, size = size_](const std::byte*) { ::munmap(base, size); }};
}

}  // namespace ptrt
