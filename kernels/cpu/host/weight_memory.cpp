#include "kernels/weight_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <sstream>

#include "kernels/base/error.h"
#include "kernels/cpu/host/memory.h"

namespace ptrt {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t whole_pages(std::size_t bytes) {
  return (bytes + kHugePage - 1) / kHugePage * kHugePage;
}

// Maps a part of a file from an address on a huge page: first a range of addresses that is long enough, then the
// file over the part of it that starts there.
std::shared_ptr<std::byte[]> map_shared(int file, std::size_t offset, std::size_t bytes, int protection) {
  const std::size_t range = bytes + kHugePage;
  void* base = mmap(nullptr, range, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  const std::shared_ptr<void> owner(base, [range](void* begin) { munmap(begin, range); });
  void* start = reinterpret_cast<void*>(whole_pages(reinterpret_cast<std::uintptr_t>(base)));
  if (mmap(start, bytes, protection, MAP_SHARED | MAP_FIXED, file, static_cast<off_t>(offset)) == MAP_FAILED)
    return nullptr;
  madvise(start, bytes, MADV_HUGEPAGE);  // advice only: many systems have none for shared memory
  return {owner, static_cast<std::byte*>(start)};
}

// A file that has no name, under the number that it has in its owner. Its inode tells it from another process's
// file of the same number.
FileDescriptor open_foreign(pid_t process, int number, std::uint64_t inode, std::size_t bytes) {
  const std::string path = fmt::format("/proc/{}/fd/{}", process, number);
  FileDescriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat found = {};
  if (!file || fstat(file.get(), &found) != 0)
    throw_failure("cannot open memory that a rank of this host shares ({}): {}", path, std::strerror(errno));
  if (found.st_ino != inode || static_cast<std::size_t>(found.st_size) != bytes)
    throw_failure("{} is not the memory that a rank of this host shares: its processes are counted apart",
                  path);
  return file;
}

}  // namespace

bool shared_memory_has_huge_pages(std::string& why) {
  static constexpr const char* kSetting = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
  std::string text;
  std::getline(std::ifstream(kSetting), text);
  for (const char* on : {"[always]", "[within_size]", "[advise]", "[force]"})
    if (text.find(on) != std::string::npos) return true;
  why = fmt::format("shared memory has no huge pages ({}: {})", kSetting, text.empty() ? "not there" : text);
  return false;
}

// The file: its process, number, inode and size; then the sizes of its blocks.
std::string WeightMemory::description() const {
  if (!file_) return "";
  struct stat file = {};
  if (fstat(file_.get(), &file) != 0) throw_failure("shared memory: {}", std::strerror(errno));
  return fmt::format("{} {} {} {} {}", getpid(), file_.get(), file.st_ino, offered_, fmt::join(sizes_, " "));
}

void WeightMemory::adopt(std::string_view description) {
  std::istringstream words{std::string(description)};
  pid_t process = 0;
  int number = -1;
  std::uint64_t inode = 0;
  std::size_t bytes = 0, at = 0;
  words >> process >> number >> inode >> bytes;
  const FileDescriptor file = open_foreign(process, number, inode, bytes);
  std::vector<Block> blocks;
  for (std::size_t size; words >> size; at += size) {
    blocks.push_back({map_shared(file.get(), at, size, PROT_READ), size});
    if (blocks.back().data == nullptr)
      throw_failure("cannot map {} bytes of shared memory: {}", size, std::strerror(errno));
  }
  adopted_ = std::move(blocks);
  taken_ = 0;
}

std::shared_ptr<std::byte[]> WeightMemory::allocate(std::size_t bytes, const std::string& what) {
  if (adopted()) return next_adopted(bytes, what);
  if (!offers_) return allocate_zeroed(bytes, what);
  const std::size_t size = whole_pages(bytes);
  if (!file_) file_ = FileDescriptor(memfd_create("ptrt weights", MFD_CLOEXEC));
  std::shared_ptr<std::byte[]> data;
  if (file_ && ftruncate(file_.get(), static_cast<off_t>(offered_ + size)) == 0)
    data = map_shared(file_.get(), offered_, size, PROT_READ | PROT_WRITE);
  if (data == nullptr)
    throw_failure("no shared memory for {}, {} bytes: {}", what, bytes, std::strerror(errno));
  sizes_.push_back(size);
  offered_ += size;
  return data;
}

std::shared_ptr<std::byte[]> WeightMemory::next_adopted(std::size_t bytes, const std::string& what) {
  if (taken_ == adopted_.size() || adopted_[taken_].bytes != whole_pages(bytes))
    throw_failure("internal error: the shared weights have no block of {} bytes for {}", bytes, what);
  return adopted_[taken_++].data;
}

}  // namespace ptrt
