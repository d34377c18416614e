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
bool target_has_products() {
  return (HWY_TARGET & (HWY_AVX3 | HWY_NEON)) != 0;
}
}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/cpu/simd/dispatch.h"
#include "kernels/cpu/simd/native_products.h"

namespace ptrt {
namespace {

// All that are compiled and run here, best first.
std::vector<std::int64_t> available_targets() {
  std::vector<std::int64_t> targets;
  for (std::int64_t left = detect_simd_targets() & HWY_TARGETS; left != 0; left &= left - 1)
    targets.push_back(left & -left);
  return targets;
}

hwy::ChosenTarget& chosen() {
  static hwy::ChosenTarget target;
  [[maybe_unused]] static const bool set = (target.Update(detect_simd_targets()), true);
  return target;
}

const std::string kBfloat16Part = "+BF16";
bool takes_bfloat16_part = true;  // where the target in use has it

}  // namespace

std::size_t chosen_simd_target() {
  return chosen().GetIndex();
}

PTRT_EXPORT(target_name);
PTRT_EXPORT(target_has_products);

std::string simd_target() {
  return PTRT_DISPATCH(target_name)();
}

bool simd_target_has_products() {
  return PTRT_DISPATCH(target_has_products)();
}

bool simd_target_has_bfloat16() {
  return takes_bfloat16_part && simd_target_has_products() && has_native_bfloat16();
}

std::vector<std::string> simd_targets() {
  std::vector<std::string> names;
  for (const std::int64_t target : available_targets()) {
    const std::string name = hwy::TargetName(target);
    if ((target & (HWY_AVX3 | HWY_NEON)) != 0 && has_native_bfloat16()) names.push_back(name + kBfloat16Part);
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
  for (const std::int64_t target : available_targets())
    if (vectors == hwy::TargetName(target)) chosen().Update(target);
  takes_bfloat16_part = bfloat16;
}

}  // namespace ptrt
#endif  // HWY_ONCE
