#include "runtime/job/fault.h"

#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <iterator>
#include <string>
#include <thread>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

struct Fault {
  bool armed = false;
  std::string point;
  long passes_left = 0;
  long pause_ms = 0;  // 0: throws
  int signal = 0;     // 0: none
};
Fault g_fault;
constexpr std::string_view kPoints[] = {"start", "load", "step", "sync", "store", "finish", "publish", "end"};

long to_number(const std::string& text, const std::string& all) {
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || value < 0)
    throw_bad_input("PTRT_FAULT=\"{}\": '{}' is no count", all, text);
  return value;
}

}  // namespace

void arm_faults(int rank) {
  g_fault = {};
  const char* value = std::getenv("PTRT_FAULT");
  if (value == nullptr || *value == '\0') return;
  const std::string all = value;
  long fault_rank = -1;
  for (std::size_t at = 0; at < all.size();) {
    const std::size_t end = std::min(all.find(',', at), all.size());
    const std::string item = all.substr(at, end - at);
    const std::size_t equals = item.find('=');
    const std::string key = item.substr(0, equals);
    const std::string text = equals == std::string::npos ? "" : item.substr(equals + 1);
    if (key == "rank") {
      fault_rank = to_number(text, all);
    } else if (key == "at" && std::ranges::find(kPoints, text) != std::end(kPoints)) {
      g_fault.point = text;
    } else if (key == "after") {
      g_fault.passes_left = to_number(text, all);
    } else if (key == "pause_ms") {
      g_fault.pause_ms = to_number(text, all);
    } else if (key == "signal") {
      g_fault.signal = static_cast<int>(to_number(text, all));
    } else {
      throw_bad_input("PTRT_FAULT=\"{}\": expected rank=R,at={}[,after=N][,pause_ms=M|,signal=S], found '{}'",
                      all, fmt::join(kPoints, "|"), item);
    }
    at = end + 1;
  }
  g_fault.armed = fault_rank == rank && !g_fault.point.empty();
}

void fault_point(std::string_view point) {
  if (!g_fault.armed || point != g_fault.point) return;
  if (g_fault.passes_left > 0) {
    g_fault.passes_left--;
    return;
  }
  if (g_fault.pause_ms > 0) return std::this_thread::sleep_for(std::chrono::milliseconds(g_fault.pause_ms));
  g_fault.armed = false;
  if (g_fault.signal > 0) {
    kill(getpid(), g_fault.signal);
    return;
  }
  throw_failure("injected fault at '{}' (PTRT_FAULT)", point);
}

}  // namespace ptrt
