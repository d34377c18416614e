// The memory of a rank's weights: its own, or one that several processes of this host share.
//
// One process offers its memory: blocks of anonymous shared memory, which it fills. The others adopt it: they map the
// same blocks, read-only, in the order in which the first one took them, and find the content there. Both must
// therefore take blocks of the same sizes in the same order.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/file_descriptor.h"

namespace ptrt {

// Whether shared memory may have huge pages here; without them, a decode step may read weights at half the
// speed. Where it has none, `why` names the setting.
bool shared_memory_has_huge_pages(std::string& why);

class WeightMemory {
 public:
  // Blocks from now on can be mapped by other processes.
  void offer() { offers_ = true; }
  // Of the blocks so far, for adopt() in another process of this host.
  std::string description() const;
  // Blocks from now on are those that are described. Throws failure where one of them cannot be mapped: processes
  // of other users, or in other containers. Then nothing has changed.
  void adopt(std::string_view description);
  // Blocks come with their content, and must not be written.
  bool adopted() const { return !adopted_.empty(); }

  // At least 64-byte aligned; large blocks on a huge page where the system has them. Zeroed where it is not
  // adopted. Throws failure with `what` when there is none.
  std::shared_ptr<std::byte[]> allocate(std::size_t bytes, const std::string& what);

 private:
  struct Block {
    std::shared_ptr<std::byte[]> data;
    std::size_t bytes = 0;
  };
  std::shared_ptr<std::byte[]> next_adopted(std::size_t bytes, const std::string& what);

  bool offers_ = false;
  FileDescriptor file_;             // one for all blocks offered, one after the other
  std::vector<std::size_t> sizes_;  // of those
  std::size_t offered_ = 0;         // their sum
  std::vector<Block> adopted_;
  std::size_t taken_ = 0;  // of those
};

}  // namespace ptrt
