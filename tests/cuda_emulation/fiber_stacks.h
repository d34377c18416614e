// The stacks of emulated threads, and their annotations for AddressSanitizer.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <stdexcept>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace ptrt::emulation {

inline constexpr std::size_t kStackBytes = 128 << 10;  // AddressSanitizer's frames are large

// AddressSanitizer must be notified of every switch of stacks.
#ifdef __SANITIZE_ADDRESS__
inline void leave_stack(void** fake_stack, const void* bottom, std::size_t bytes) {
  __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
}
inline void enter_stack(void* fake_stack, const void** old_bottom, std::size_t* old_bytes) {
  __sanitizer_finish_switch_fiber(fake_stack, old_bottom, old_bytes);
}
inline void forget_frames(void* stack) {
  ASAN_UNPOISON_MEMORY_REGION(stack, kStackBytes);
}
#else
inline void leave_stack(void**, const void*, std::size_t) {}
inline void enter_stack(void*, const void**, std::size_t*) {}
inline void forget_frames(void*) {}
#endif

// One stack for each thread of a block, kept from block to block.
inline std::byte* stack_of(int index) {
  static std::vector<std::byte*> stacks;
  while (static_cast<int>(stacks.size()) <= index) {
    void* base = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw std::runtime_error("no memory for the stack of an emulated thread");
    stacks.push_back(static_cast<std::byte*>(base));
  }
  return stacks[static_cast<std::size_t>(index)];
}

}  // namespace ptrt::emulation
