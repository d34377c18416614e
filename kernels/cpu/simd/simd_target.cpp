#include "kernels/cpu/simd/simd_target.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/simd/simd_target.cpp"
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
#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/cpu/simd/avx512_support.h"

namespace ptrt {
namespace {

const std::string kBfloat16Part = "+BF16";
bool takes_bfloat16_part = true;  // where the target in use has it

}  // namespace

HWY_EXPORT(target_name);
HWY_EXPORT(target_is_avx512);

std::string simd_target() {
  return HWY_DYNAMIC_DISPATCH(target_name)();
}

bool simd_target_is_avx512() {
  return HWY_DYNAMIC_DISPATCH(target_is_avx512)();
}

bool simd_target_has_bfloat16() {
  return takes_bfloat16_part && simd_target_is_avx512() && has_avx512_bfloat16();
}

std::vector<std::string> simd_targets() {
  hwy::SetSupportedTargetsForTest(0);
  std::vector<std::string> names;
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    const std::string name = hwy::TargetName(target);
    if (target == HWY_AVX3 && has_avx512_bfloat16()) names.push_back(name + kBfloat16Part);
    names.push_back(name);
  }
  return names;
}

void set_simd_target(const std::string& name) {
  const std::vector<std::string> names = simd_targets();
  const std::string& wanted = name.empty() ? names.front() : name;
  if (!std::ranges::count(names, wanted))
    throw_bad_input("instruction set \"{}\" is not one this machine runs: {}", name, fmt::join(names, ", "));
  const bool bfloat16 = wanted.ends_with(kBfloat16Part);
  const std::string vectors = bfloat16 ? wanted.substr(0, wanted.size() - kBfloat16Part.size()) : wanted;
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets())
    if (vectors == hwy::TargetName(target)) hwy::GetChosenTarget().Update(target);
  takes_bfloat16_part = bfloat16;
}

}  // namespace ptrt
#endif  // HWY_ONCE
