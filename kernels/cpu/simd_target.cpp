#include "kernels/cpu/simd_target.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/simd_target.cpp"
#include "hwy/foreach_target.h"
// foreach_target comes first
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {
const char* target_name() {
  return hwy::TargetName(HWY_TARGET);
}
bool target_is_avx512() {
  return HWY_TARGET == HWY_AVX3;
}
}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/error.h"

namespace ptrt {

HWY_EXPORT(target_name);
HWY_EXPORT(target_is_avx512);

std::string simd_target() {
  return HWY_DYNAMIC_DISPATCH(target_name)();
}

bool simd_target_is_avx512() {
  return HWY_DYNAMIC_DISPATCH(target_is_avx512)();
}

std::vector<std::string> simd_targets() {
  hwy::SetSupportedTargetsForTest(0);
  std::vector<std::string> names;
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets())
    names.emplace_back(hwy::TargetName(target));
  return names;
}

void set_simd_target(const std::string& name) {
  hwy::SetSupportedTargetsForTest(0);
  std::int64_t chosen = name.empty() ? hwy::SupportedTargets() : 0;
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets())
    if (name == hwy::TargetName(target)) chosen = target;
  if (chosen == 0)
    throw_bad_input("instruction set \"{}\" is not one this machine runs: {}", name,
                    fmt::join(simd_targets(), ", "));
  hwy::GetChosenTarget().Update(chosen);
}

}  // namespace ptrt
#endif  // HWY_ONCE
