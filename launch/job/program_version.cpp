#include "launch/job/program_version.h"

#include <elf.h>
#include <fmt/format.h>
#include <link.h>

#include <cstddef>
#include <cstring>
#include <span>

#ifndef PTRT_VERSION
#error "PTRT_VERSION comes from CMake"
#endif

namespace ptrt {
namespace {

constexpr std::size_t kDigitsShown = 12;

std::size_t padded(std::size_t bytes) {
  return (bytes + 3) / 4 * 4;
}

// The linker's note in `notes`, a run of ELF notes; "" where there is none.
std::string build_id_among(std::span<const std::byte> notes) {
  ElfW(Nhdr) note;
  while (notes.size() >= sizeof(note)) {
    std::memcpy(&note, notes.data(), sizeof(note));
    const std::size_t name = sizeof(note), content = name + padded(note.n_namesz);
    if (content + note.n_descsz > notes.size()) break;
    if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && std::memcmp(&notes[name], "GNU", 4) == 0) {
      std::string text;
      for (const std::byte byte : notes.subspan(content, note.n_descsz))
        text += fmt::format("{:02x}", static_cast<unsigned>(byte));
      return text;
    }
    const std::size_t next = content + padded(note.n_descsz);
    if (next > notes.size()) break;
    notes = notes.subspan(next);
  }
  return "";
}

// Called for the executable first.
int find_build_id(dl_phdr_info* object, std::size_t, void* found) {
  for (ElfW(Half) i = 0; i < object->dlpi_phnum; i++) {
    const ElfW(Phdr)& segment = object->dlpi_phdr[i];
    if (segment.p_type != PT_NOTE) continue;
    const auto* notes = reinterpret_cast<const std::byte*>(object->dlpi_addr + segment.p_vaddr);
    auto& id = *static_cast<std::string*>(found);
    if (id.empty()) id = build_id_among({notes, segment.p_memsz});
  }
  return 1;
}

}  // namespace

std::string program_version() {
  std::string id;
  dl_iterate_phdr(find_build_id, &id);
  return fmt::format(PTRT_VERSION "{}",
                     id.empty() ? "" : fmt::format(" (build {})", id.substr(0, kDigitsShown)));
}

}  // namespace ptrt
