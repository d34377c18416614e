// The hooks of libFuzzer (https://llvm.org/docs/LibFuzzer.html), which brings main().
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver/target.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace ptrt::fuzz {

std::string mutate_bytes(std::string input, Random& random) {
  const std::size_t size = input.size();
  input.resize(size + 64 + random.below(64));
  input.resize(LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(input.data()), size, input.size()));
  return input;
}

void fail(const std::string& what) {
  std::fprintf(stderr, "wrong: %s\n", what.c_str());
  std::abort();
}

}  // namespace ptrt::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ptrt::fuzz::run_input({reinterpret_cast<const char*>(data), size});
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned seed) {
  ptrt::fuzz::Random random(seed);
  const std::string input(reinterpret_cast<const char*>(data), size);
  const std::string changed = ptrt::fuzz::mutate_input(input, random);
  const std::size_t length = std::min(changed.size(), max_size);
  if (length > 0) std::memcpy(data, changed.data(), length);
  return length;
}
