// The plug-in as the program loads it; needs no GPU.
#include "kernels/cuda/plugin.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

TEST(CudaPlugin, LoadsAndKnowsItsInterface) {
  void* library = dlopen(PTRT_PLUGIN_FILE, RTLD_NOW | RTLD_LOCAL);  // with every symbol resolved
  ASSERT_NE(library, nullptr) << dlerror();
  const auto entry = reinterpret_cast<CudaPluginEntry*>(dlsym(library, kCudaPluginEntry));
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(entry("another interface"), nullptr);
  const CudaPlugin* plugin = entry(PTRT_PLUGIN_INTERFACE);
  ASSERT_NE(plugin, nullptr);
  if (!plugin->missing().empty()) {
    EXPECT_NE(plugin->missing().find("CUDA device"), std::string::npos) << plugin->missing();
    EXPECT_THROW(plugin->make({}), Error);  // an error of this program, across the border
    EXPECT_THROW(plugin->devices(), Error);
  }
}

TEST(CudaPlugin, SaysWhatIsMissing) {
  const std::string missing = cuda_missing();
  if (missing.empty()) return;
  try {
    make_cuda_backend({});
    FAIL() << "made a backend without a device";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_input);
    EXPECT_EQ(error.what(), missing);
  }
}

}  // namespace
}  // namespace ptrt
