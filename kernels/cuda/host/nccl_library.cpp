#include "kernels/cuda/host/nccl_library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <string_view>

#include "kernels/nccl_version.h"

namespace ptrt::cuda {

bool NcclLibrary::has_windows() const {
#ifdef PTRT_NCCL_WINDOWS
  return comm_window_register != nullptr && mem_alloc != nullptr && nccl_waits_for_kernels(version);
#else
  return false;
#endif
}

NcclLibrary load_nccl(const char* file) {
  NcclLibrary found;
  void* library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    found.missing = fmt::format("no NCCL on this host ({}): LD_LIBRARY_PATH says where it is", dlerror());
    return found;
  }
  const auto take = [&]<typename F>(F& function, const char* name, bool required) {
    function = reinterpret_cast<F>(dlsym(library, name));
    if (function == nullptr && required && found.missing.empty())
      found.missing = fmt::format("{} is no NCCL that can be used: it has no {}", file, name);
  };
  decltype(&ncclGetVersion) get_version = nullptr;
  take(get_version, "ncclGetVersion", true);
  take(found.get_unique_id, "ncclGetUniqueId", true);
  take(found.comm_init_rank, "ncclCommInitRank", true);
  take(found.comm_abort, "ncclCommAbort", true);
  take(found.comm_get_async_error, "ncclCommGetAsyncError", true);
  take(found.get_error_string, "ncclGetErrorString", true);
  take(found.all_reduce, "ncclAllReduce", true);
  take(found.all_gather, "ncclAllGather", true);
  take(found.get_last_error, "ncclGetLastError", false);
  take(found.mem_alloc, "ncclMemAlloc", false);
  take(found.mem_free, "ncclMemFree", false);
#ifdef PTRT_NCCL_WINDOWS
  take(found.comm_window_register, "ncclCommWindowRegister", false);
#endif
  if (!found.missing.empty()) return found;
  setenv("NCCL_COMM_BLOCKING", "1", 1);
  if (get_version(&found.version) != ncclSuccess || found.version <= 0) {
    found.version = 0;
    found.missing = "NCCL does not report its version";
  } else if (!nccl_waits_for_kernels(found.version)) {
    const char* asked = std::getenv("NCCL_WIN_ENABLE");
    found.windows_overruled = asked != nullptr && std::string_view(asked) != "0";
    setenv("NCCL_WIN_ENABLE", "0", 1);
  }
  return found;
}

const NcclLibrary& nccl() {
  static const NcclLibrary once = load_nccl("libnccl.so.2");
  return once;
}

}  // namespace ptrt::cuda
