#include "launch/jsonl/result_timings.h"

#include <fmt/format.h>

#include <string_view>

#include "kernels/base/error.h"

namespace ptrt {

std::string timings_of(const Completion& completion, double put_s) {
  const auto ms = [](double seconds) { return fmt::format("{:.3f}", 1e3 * seconds); };
  const auto later = static_cast<double>(std::ssize(completion.tokens)) - 1;
  const std::string tpot =
      later > 0 ? ms((completion.finish_s - completion.first_token_s) / later) : std::string("null");
  return fmt::format(R"({{"queue_ms":{},"ttft_ms":{},"tpot_ms":{},"cached_tokens":{}}})",
                     ms(completion.admitted_s - put_s), ms(completion.first_token_s - put_s), tpot,
                     completion.reused_tokens);
}

std::string with_timings(std::string result, bool openai, const std::string& timings) {
  const std::string_view end = openai ? R"(}},"error":null})" : "}";
  PTRT_CHECK(result.ends_with(end));
  result.insert(result.size() - end.size(), fmt::format(",\"timings\":{}", timings));
  return result;
}

}  // namespace ptrt
