#include "launch/plan/hardware.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/files.h"
#include "model_io/config/strict_json.h"

namespace ptrt {
namespace {

using nlohmann::json;

// Speeds and sizes are from the makers' data sheets (SXM; bfloat16 without sparsity). Efficiencies and
// overhead are assumptions: what good kernels reach, and the gaps between the kernels of a captured step.
const std::map<std::string, GpuSpec> kGpus{
    {"a100", {"a100", 80, 2039, 312, 0.85, 0.7, 5}},
    {"h100", {"h100", 80, 3350, 989, 0.85, 0.7, 5}},
    {"h200", {"h200", 141, 4800, 989, 0.85, 0.7, 5}},
};
// nvlink: 8 GPUs of a node; published measurements of 32 KiB over 8 H100 give 7.8 to 11.8 us in one step.
// ib: 400 Gbit/s a GPU.
const std::map<std::string, LinkSpec> kLinks{
    {"nvlink", {"nvlink", 9, 450, 8}},
    {"ib", {"ib", 25, 50, 0}},
};

// No figure that is made of numbers in this range overflows.
constexpr double kLeast = 1e-9, kMost = 1e15;

class Reader {
 public:
  Reader(const std::string& path, const std::vector<std::string>& keys) : path_(path) {
    object_ = parse_json_object(read_text_file(path, "the description"), path);
    for (const auto& [key, value] : object_.items())
      if (key != "name" && key != "source" && std::ranges::count(keys, key) == 0)
        throw_bad_input("{}: unknown key {}", path, key);
  }
  std::string name() const {
    if (!object_.contains("name")) return path_;
    const json& value = object_["name"];
    if (!value.is_string()) throw_bad_input("{}: name: expected text, found {}", path_, value.dump());
    return value.get<std::string>();
  }
  double number(const std::string& key, bool zero = false, std::optional<double> otherwise = {}) const {
    if (!object_.contains(key) && otherwise) return *otherwise;
    if (!object_.contains(key)) throw_bad_input("{}: {} is missing", path_, key);
    const json& value = object_[key];
    const double number = value.is_number() ? value.get<double>() : -1;
    if (!(zero && number == 0) && !(number >= kLeast && number <= kMost))
      throw_bad_input("{}: {}: expected a number from 1e-9 to 1e15{}, found {}", path_, key,
                      zero ? ", or 0" : "", value.dump());
    return number;
  }
  std::int64_t count(const std::string& key, std::optional<double> otherwise = {}) const {
    constexpr double kMostRanks = 1 << 30;
    const double value = number(key, true, otherwise);
    if (value != std::floor(value) || value > kMostRanks)
      throw_bad_input("{}: {}: expected an integer in 0..{}, found {}", path_, key, kMostRanks,
                      object_[key].dump());
    return static_cast<std::int64_t>(value);
  }

 private:
  std::string path_;
  json object_;
};

}  // namespace

bool is_known_gpu(const std::string& name) {
  return kGpus.contains(name);
}

bool is_known_link(const std::string& name) {
  return kLinks.contains(name);
}

GpuSpec gpu_of(const std::string& name) {
  if (const auto known = kGpus.find(name); known != kGpus.end()) return known->second;
  const Reader file(name, {"memory_gib", "memory_gb_per_s", "gemm_tflops", "bandwidth_efficiency",
                           "gemm_efficiency", "layer_overhead_us", "step_overhead_us",
                           "decode_gemm_efficiency", "kv_bandwidth_efficiency", "wait_layers"});
  return {file.name(),
          file.number("memory_gib"),
          file.number("memory_gb_per_s"),
          file.number("gemm_tflops"),
          file.number("bandwidth_efficiency"),
          file.number("gemm_efficiency"),
          file.number("layer_overhead_us", true),
          file.number("step_overhead_us", true, 0),
          file.number("decode_gemm_efficiency", true, 0),
          file.number("kv_bandwidth_efficiency", true, 0),
          file.number("wait_layers", true, 0)};
}

LinkSpec link_of(const std::string& name) {
  if (const auto known = kLinks.find(name); known != kLinks.end()) return known->second;
  const Reader file(name, {"latency_us", "gb_per_s", "ranks", "message_us", "sum_bytes", "two_step_bytes",
                           "shared", "host_ranks", "host_latency_us", "host_gb_per_s"});
  LinkSpec link{file.name(),
                file.number("latency_us", true),
                file.number("gb_per_s"),
                file.count("ranks"),
                file.number("message_us", true, 0),
                file.number("sum_bytes", false, 4),
                file.number("two_step_bytes", true, 0),
                file.number("shared", true, 0) != 0};
  link.host_ranks = file.count("host_ranks", 0);
  link.host_latency_us = file.number("host_latency_us", true, 0);
  if (link.host_ranks > 1) link.host_gb_per_s = file.number("host_gb_per_s");
  return link;
}

}  // namespace ptrt
