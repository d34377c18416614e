#include "kernels/weight_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
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

// Maps all of a file from an address on a huge page: first a range of addresses that is long enough, then the
// file over the part of it that starts there.
std::shared_ptr<std::byte[]> map_shared(int file, std::size_t bytes, int protection) {
  const std::size_t range = bytes + kHugePage;
  void* base = mmap(nullptr, range, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  const std::shared_ptr<void> owner(base, [range](void* begin) { munmap(begin, range); });
  void* start = reinterpret_cast<void*>(whole_pages(reinterpret_cast<std::uintptr_t>(base)));
  if (mmap(start, bytes, protection, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED) return nullptr;
  madvise(start, bytes, MADV_HUGEPAGE);  // advice only: many systems have none for shared memory
  return {owner, static_cast<std::byte*>(start)};
}

// A file that has no name, under the number that it has in its owner. Its inode tells it from another process's
// file of the same number.
struct SharedFile {
  pid_t process = 0;
  int number = -1;
  std::uint64_t inode = 0;
  std::size_t bytes = 0;
};

std::shared_ptr<std::byte[]> map_foreign(const SharedFile& shared) {
  const std::string path = fmt::format("/proc/{}/fd/{}", shared.process, shared.number);
  const FileDescriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat found = {};
  if (!file || fstat(file.get(), &found) != 0)
    throw_failure("cannot open memory that a rank of this host shares ({}): {}", path, std::strerror(errno));
  if (found.st_ino != shared.inode || static_cast<std::size_t>(found.st_size) != shared.bytes)
    throw_failure("{} is not the memory that a rank of this host shares: its processes are counted apart",
                  path);
  std::shared_ptr<std::byte[]> data = map_shared(file.get(), shared.bytes, PROT_READ);
  if (data == nullptr)
    throw_failure("cannot map {} bytes of shared memory: {}", shared.bytes, std::strerror(errno));
  return data;
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

std::string WeightMemory::description() const {
  std::string text;
  for (std::size_t i = 0; i < files_.size(); i++) {
    struct stat file = {};
    if (fstat(files_[i].get(), &file) != 0) throw_failure("shared memory: {}", std::strerror(errno));
    text += fmt::format("{} {} {} {}\n", getpid(), files_[i].get(), file.st_ino, sizes_[i]);
  }
  return text;
}

void WeightMemory::adopt(std::string_view description) {
  std::istringstream lines{std::string(description)};
  std::vector<Block> blocks;
  for (SharedFile file; lines >> file.process >> file.number >> file.inode >> file.bytes;)
    blocks.push_back({map_foreign(file), file.bytes});
  adopted_ = std::move(blocks);
  taken_ = 0;
}

std::shared_ptr<std::byte[]> WeightMemory::allocate(std::size_t bytes, const std::string& what) {
  if (adopted()) return next_adopted(bytes, what);
  if (!offers_) return allocate_zeroed(bytes, what);
  const std::size_t size = whole_pages(bytes);
  FileDescriptor file(memfd_create("ptrt weights", MFD_CLOEXEC));
  if (!file || ftruncate(file.get(), static_cast<off_t>(size)) != 0)
    throw_failure("no shared memory for {}, {} bytes: {}", what, bytes, std::strerror(errno));
  std::shared_ptr<std::byte[]> data = map_shared(file.get(), size, PROT_READ | PROT_WRITE);
  if (data == nullptr)
    throw_failure("no shared memory for {}, {} bytes: {}", what, bytes, std::strerror(errno));
  files_.push_back(std::move(file));
  sizes_.push_back(size);
  return data;
}

std::shared_ptr<std::byte[]> WeightMemory::next_adopted(std::size_t bytes, const std::string& what) {
  if (taken_ == adopted_.size() || adopted_[taken_].bytes != whole_pages(bytes))
    throw_failure("internal error: the shared weights have no block of {} bytes for {}", bytes, what);
  return adopted_[taken_++].data;
}

}  // namespace ptrt
