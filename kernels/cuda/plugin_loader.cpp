// The program's side of the plug-in; built without CUDA.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>

#include "kernels/base/error.h"
#include "kernels/cuda/plugin.h"

#if !defined(PTRT_PLUGIN_INTERFACE) || !defined(PTRT_PLUGIN_LIBDIR)
#error "PTRT_PLUGIN_INTERFACE and PTRT_PLUGIN_LIBDIR come from CMake"
#endif

namespace ptrt {
namespace {

// $PTRT_PLUGIN_DIR alone where it is set; else the program's folder (a build), then the library folder beside
// it (an installation, wherever it was moved to).
std::string plugin_path() {
  if (const char* set = std::getenv("PTRT_PLUGIN_DIR"); set != nullptr && *set != '\0')
    return fmt::format("{}/{}", set, kCudaPluginFile);
  char program[4096] = {};
  if (readlink("/proc/self/exe", program, sizeof program - 1) < 0) return kCudaPluginFile;
  std::string folder = program;
  folder.resize(folder.rfind('/'));
  const std::string built = fmt::format("{}/{}", folder, kCudaPluginFile);
  const std::string installed = fmt::format("{}/{}/{}", folder, PTRT_PLUGIN_LIBDIR, kCudaPluginFile);
  return access(installed.c_str(), R_OK) == 0 && access(built.c_str(), R_OK) != 0 ? installed : built;
}

// Asks the driver directly, before hundreds of megabytes of CUDA libraries are loaded.
std::string driver_missing() {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (driver == nullptr) return "no CUDA driver on this host (libcuda.so.1)";
  const auto init = reinterpret_cast<int (*)(unsigned)>(dlsym(driver, "cuInit"));
  const auto count = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDeviceGetCount"));
  if (init == nullptr || count == nullptr) return "the CUDA driver on this host lacks cuInit";
  int devices = 0;
  if (const int status = init(0); status != 0) return fmt::format("no CUDA device (driver error {})", status);
  if (const int status = count(&devices); status != 0)
    return fmt::format("no CUDA device (driver error {})", status);
  return devices > 0 ? "" : "no CUDA device";
}

struct Loaded {
  const CudaPlugin* plugin = nullptr;
  std::string missing;
};

Loaded load() {
  const std::string path = plugin_path();
  if (access(path.c_str(), R_OK) != 0)
    return {nullptr, fmt::format("there is no {} (a build with the CUDA toolkit makes it)", path)};
  if (const std::string missing = driver_missing(); !missing.empty()) return {nullptr, missing};
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // never unloaded
  if (library == nullptr) return {nullptr, fmt::format("cannot load {}: {}", path, dlerror())};
  const auto entry = reinterpret_cast<CudaPluginEntry*>(dlsym(library, kCudaPluginEntry));
  const CudaPlugin* plugin = entry != nullptr ? entry(PTRT_PLUGIN_INTERFACE) : nullptr;
  if (plugin == nullptr)
    return {nullptr, fmt::format("{} was built from another version than this program", path)};
  return {plugin, plugin->missing()};
}

const Loaded& loaded() {
  static const Loaded once = load();
  return once;
}

}  // namespace

std::string cuda_missing() {
  return loaded().missing;
}

std::vector<std::string> cuda_devices() {
  if (!loaded().missing.empty()) throw_bad_input("{}", loaded().missing);
  return loaded().plugin->devices();
}

CudaVersions cuda_versions() {
  if (!loaded().missing.empty()) throw_bad_input("{}", loaded().missing);
  return loaded().plugin->versions();
}

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options) {
  if (!loaded().missing.empty()) throw_bad_input("{}", loaded().missing);
  return loaded().plugin->make(options);
}

}  // namespace ptrt
