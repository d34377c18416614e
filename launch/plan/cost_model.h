// Predicts memory, time to first token, time per token and throughput of a model on processors and links
// that are described by a few numbers. Bytes and operations are counted. The share of the hardware's speed
// that is reached, and the cost of a collective, are parameters (docs/PLAN.md). Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model_io/config/model_config.h"

namespace ptrt {

struct GpuSpec {
  std::string name;
  double memory_gib = 0;
  double memory_gb_per_s = 0;       // of the data sheet
  double gemm_tflops = 0;           // bfloat16, dense, of the data sheet
  double bandwidth_efficiency = 1;  // shares of them that are reached
  double gemm_efficiency = 1;
  double layer_overhead_us = 0;        // between the kernels of a layer
  double step_overhead_us = 0;         // the engine's own: scheduling, sampling, launching
  double decode_gemm_efficiency = 0;   // of products of few rows; 0: as gemm_efficiency
  double kv_bandwidth_efficiency = 0;  // of reading keys and values; 0: as bandwidth_efficiency
  // How late the slowest rank is after one layer, as a share of the layer's compute time. Delays of layers
  // are independent, so they add up as a random walk: after n layers without a sync point the delay is √n
  // times this one.
  double wait_layers = 0;
};

// A sum over n ranks of b bytes each takes the lesser of
//   one step:  latency + (n - 1) (message + b / rate)              (every rank sends all to all)
//   two steps: 2 latency + 2 (n - 1) (message + b / n / rate)      (slices are added, then gathered)
// and a gathering of b bytes each takes one step. With `host_ranks` h > 1, ranks fill hosts, and a sum has
// two levels: one rank of a host gets the others' bytes and gives them the sum, 2 host_latency + h b /
// host_rate; between hosts, one rank of each sums as above. On one host alone: host_latency + (n - 1) b /
// host_rate.
struct LinkSpec {
  std::string name;
  double latency_us = 0;
  double gb_per_s = 0;     // a rank's, one way
  std::int64_t ranks = 0;  // that it joins; 0: any number
  double message_us = 0;   // of a rank's time for each message it sends
  double sum_bytes = 4;    // of a value that is summed, on its way
  // Sums of at least so many bytes a rank take two steps; 0: whichever is quicker.
  double two_step_bytes = 0;
  // The messages of all ranks move one after the other: a bus, or hosts that are emulated on the same cores.
  bool shared = false;
  std::int64_t host_ranks = 0;  // ranks on each host that share memory; 0: the link joins all alike
  double host_latency_us = 0;   // of that memory
  double host_gb_per_s = 0;     // of it, for a rank; with host_ranks
};
double sum_us(const LinkSpec& link, std::int64_t ranks, double bytes);

// How a world is divided. Ranks of a replica: fusion_ranks · tensor_parallel.
struct Layout {
  std::int64_t fusion_ranks = 1;     // that the tracks are divided over
  std::int64_t tensor_parallel = 1;  // ranks a track
  std::int64_t replicas = 1;

  std::int64_t world() const { return fusion_ranks * tensor_parallel * replicas; }
};

struct Workload {
  std::int64_t input_len = 0, output_len = 0;
  std::int64_t batch = 1;           // requests a replica serves together
  std::int64_t step_tokens = 8192;  // prompt tokens a step takes
};

// What a step uses of each resource of a rank; calibration finds the prices.
struct StepCounts {
  double weight_bytes = 0, ops = 0;        // of the products
  double kv_bytes = 0, attention_ops = 0;  // of attention
  double hops = 0;                         // of collectives, a latency each
  double messages = 0;                     // sent one after the other
  double moved_bytes = 0;                  // of them
  double host_hops = 0, host_bytes = 0;    // of collectives within a host
};

struct Prediction {
  double weight_bytes = 0, kv_bytes = 0;  // of a rank
  bool fits = false;
  double ttft_ms = 0;  // of a request that is alone
  double tpot_ms = 0;  // with the whole batch
  double output_tokens_per_s = 0;
  double sync_points = 0;    // a forward pass
  double waits = 0;          // of one, in delays of wait_layers: the sum of √layers between sync points
  double sync_fraction = 0;  // of the time of a decode step
  StepCounts prefill;        // all steps of a lone prompt
  StepCounts decode;         // a step of the whole batch
};

// Weights and activations of two bytes.
Prediction predict(const ModelConfig& config, const Layout& layout, const Workload& work, const GpuSpec& gpu,
                   const LinkSpec& link);

// The dense model that one rank a track would hold as tensor parallelism: the tracks' heads and FFNs side by
// side, as deep and, but for norms and routers, of as many parameters.
ModelConfig dense_twin(const ModelConfig& config);

// Every way to serve replicas of the model with `world` ranks.
std::vector<Layout> layouts_of(const ModelConfig& config, std::int64_t world);

}  // namespace ptrt
