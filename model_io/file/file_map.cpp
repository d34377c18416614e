#include "model_io/file/file_map.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

// [offset, offset + bytes), `offset` a multiple of the page size; null where that cannot be mapped:
// file systems without a page cache and limits of the address space refuse what can be read.
std::shared_ptr<const std::byte> map_pages(int descriptor, std::size_t offset, std::size_t bytes) {
  void* base = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, descriptor, static_cast<off_t>(offset));
  if (base == MAP_FAILED) return nullptr;
  // Advice only: pages that are not in the cache yet are read in pieces of 2 MiB and mapped as
  // such.
  ::madvise(base, bytes, MADV_HUGEPAGE);
  return {static_cast<const std::byte*>(base), [base, bytes](const std::byte*) { ::munmap(base, bytes); }};
}

}  // namespace

std::shared_ptr<const std::byte> FileMap::bytes(std::size_t offset, std::size_t bytes,
                                                std::string_view dataset) {
  find_size();
  if (!std::exchange(tried_, true)) data_ = map_pages(descriptor_, 0, size_);
  if (data_ == nullptr) return nullptr;
  check(offset, bytes, dataset);
  return {data_, data_.get() + offset};
}

std::shared_ptr<const std::byte> FileMap::part(std::size_t offset, std::size_t bytes,
                                               std::string_view dataset) {
  find_size();
  check(offset, bytes, dataset);
  const std::size_t within = offset % static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const auto pages = map_pages(descriptor_, offset - within, within + bytes);
  if (pages == nullptr) return nullptr;
  return {pages, pages.get() + within};
}

void FileMap::check(std::size_t offset, std::size_t bytes, std::string_view dataset) const {
  if (offset > size_ || bytes > size_ - offset)
    throw_bad_input("{}: truncated: it has {} bytes, and dataset {} takes {} from byte {} on", path_, size_,
                    dataset, bytes, offset);
}

void FileMap::find_size() {
  if (std::exchange(sized_, true)) return;
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0)
    throw_failure("{}: cannot find its size: {}", path_, std::strerror(errno));
  size_ = static_cast<std::size_t>(status.st_size);
}

}  // namespace ptrt
