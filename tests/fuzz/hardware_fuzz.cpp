// Descriptions of processors and links for `ptrt plan`: bad input, or figures that are numbers. The first line of an
// input is the processor, the rest the link.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "driver/json_mutator.h"
#include "driver/target.h"
#include "kernels/base/error.h"
#include "launch/plan/hardware.h"

namespace ptrt::fuzz {
namespace {

// A file in memory, by a name that can be opened.
class MemoryFile {
 public:
  explicit MemoryFile(std::string_view content) : file_(memfd_create("description", 0)) {
    expect(file_ >= 0 && write(file_, content.data(), content.size()) == static_cast<ssize_t>(content.size()),
           "cannot write a file in memory");
  }
  ~MemoryFile() { close(file_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::string name() const { return fmt::format("/proc/self/fd/{}", file_); }

 private:
  int file_;
};

ModelConfig small_model() {
  return parse_config(
      R"({"name": "m", "tracks": 4, "layers": 4, "sync_layers": [2, 4],
          "fusion": {"op": "mean", "dispatch_norm": false, "combine_norm": false},
          "hidden_size": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn_size": 96, "vocab_size": 500,
          "max_context": 512, "norm_eps": 1e-5, "norm_placement": ["pre"], "qk_norm": false,
          "attention_pattern": ["global_rope"], "attention_window": 0, "rope_theta": 10000.0,
          "ffn_pattern": ["dense", "moe"], "moe": {"experts": 4, "top_k": 2, "ffn_size": 32, "router_logit_cap": null},
          "tie_embeddings": true, "bos_token_id": null, "eos_token_ids": [1]})",
      "small");
}

void check_figures(const GpuSpec& gpu, const LinkSpec& link) {
  static const ModelConfig config = small_model();
  expect(link.ranks >= 0, "a link joins {} ranks", link.ranks);
  for (const std::int64_t world : {1, 8})
    for (const Layout& layout : layouts_of(config, world)) {
      const Prediction p = predict(config, layout, {256, 16, 4, 128}, gpu, link);
      for (const double figure : {p.ttft_ms, p.tpot_ms, p.output_tokens_per_s, p.sync_fraction,
                                  p.weight_bytes, p.kv_bytes, p.sync_points, p.waits})
        expect(std::isfinite(figure) && figure >= 0, "a figure is {}", figure);
      expect(p.sync_fraction <= 1, "the share of syncs is {}", p.sync_fraction);
    }
}

template <typename Read>
auto read_or_refuse(const Read& read, const MemoryFile& file)
    -> std::optional<decltype(read(std::string()))> {
  try {
    return read(file.name());
  } catch (const Error& error) {
    expect(error.code() == ExitCode::bad_input, "exit status {}: {}", static_cast<int>(error.code()),
           error.what());
    expect(std::string_view(error.what()).starts_with("/proc/self/fd/"), "the message names no file: {}",
           error.what());
    return {};
  }
}

}  // namespace

void run_input(std::string_view input) {
  const std::size_t newline = std::min(input.find('\n'), input.size());
  const MemoryFile first(input.substr(0, newline)), second(input.substr(newline));
  const auto gpu = read_or_refuse(gpu_of, first);
  const auto link = read_or_refuse(link_of, second);
  if (gpu || link) check_figures(gpu ? *gpu : gpu_of("h100"), link ? *link : link_of("nvlink"));
}

std::string mutate_input(std::string input, Random& random) {
  constexpr auto kKeys = std::to_array<std::string_view>({
      "name",
      "source",
      "memory_gib",
      "memory_gb_per_s",
      "gemm_tflops",
      "bandwidth_efficiency",
      "gemm_efficiency",
      "layer_overhead_us",
      "step_overhead_us",
      "decode_gemm_efficiency",
      "kv_bandwidth_efficiency",
      "wait_layers",
      "latency_us",
      "gb_per_s",
      "ranks",
      "message_us",
      "sum_bytes",
      "two_step_bytes",
      "shared",
      "host_ranks",
      "host_latency_us",
      "host_gb_per_s",
  });
  const std::size_t newline = std::min(input.find('\n'), input.size());
  const bool first = random.one_in(2);
  const std::string gpu = input.substr(0, newline), link = input.substr(newline);
  std::string changed = mutate_json(first ? gpu : link, {kKeys, {}}, random);
  return first ? changed + link : gpu + "\n" + changed;
}

}  // namespace ptrt::fuzz
