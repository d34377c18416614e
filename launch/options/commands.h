// The subcommands of `ptrt`: options as parsed, and the function that runs each. All throw ptrt::Error.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/device_collectives.h"
#include "kernels/tensor.h"
#include "kernels/weight_source.h"
#include "runtime/serving/request.h"

namespace ptrt {

class JobComm;

// This process runs the first rank's share of a replica of so many ranks; the others are not there.
struct EmulatedRanks {
  std::int64_t ranks = 1;
  LinkModel link;
};

// Options that every command which runs the model shares.
struct ModelRunOptions {
  std::string model;
  std::string backend = "auto";     // auto, cpu, cuda
  std::string compute = "auto";     // auto, float32, bfloat16, int8
  std::string weights = "auto";     // auto: as stored; int8: matrices quantised on load
  std::string vocab_head = "auto";  // auto, whole, split
  std::string kv_dtype = "auto";    // auto, float32, bfloat16
  std::string cuda_graphs = "on";   // on, off
  int threads = 0;                  // CPU threads a rank; 0: one a core of its share of the host
  std::string bind = "auto";        // auto: a core a thread where there are enough; none
  std::int64_t max_batch = 32;
  std::int64_t max_step_tokens = 512;          // rows of a step: decode tokens plus prefill chunks
  std::optional<std::int64_t> kv_cache_bytes;  // a rank
  double gpu_memory_fraction = 0.9;            // of the device's free memory at start that the plan may use
  std::int64_t replicas = 0;                   // 0: from the number of ranks
  std::int64_t tensor_parallel = 1;
  std::string fusion = "auto";            // between ranks on GPUs: auto, tree, nccl, staged
  bool share_gpu = false;                 // several ranks may be on one GPU
  double step_timeout_s = 300;            // 0: none
  std::optional<EmulatedRanks> emulated;  // bench only
  bool quiet = false;
};

// `ptrt generate` and `ptrt score`.
struct BatchOptions {
  ModelRunOptions run;
  Task task = Task::generate;
  std::string requests;
  std::string output;
  bool resume = false;
};

struct BenchOptions {
  ModelRunOptions run;
  std::string random_weights;                                         // CONFIG.json in place of a model file
  std::vector<std::int64_t> input_lens = {512}, output_lens = {128};  // of several, every pair is run
  std::string dataset;                                                // requests file in their place
  std::int64_t requests = 0;                                          // 0: 8, or all of the dataset
  std::int64_t warmup = 1;
  std::string request_rate = "inf";  // requests a second arrive (Poisson); inf: all at the start
  std::uint64_t seed = 0;
  std::string json, csv;  // files to write
};

struct InitOptions {
  std::string config_path;  // CONFIG.json
  std::string output;       // model file
  std::uint64_t seed = 0;
  DType dtype = DType::bfloat16;
  bool split = false;
};

struct QuantizeOptions {
  std::string model;
  std::string output;
  std::string weights;  // int8
  bool split = false;
};

struct PackOptions {
  std::string model;
  std::string output;
  WeightLayout layout = WeightLayout::panels;
  bool split = false;
};

struct InspectOptions {
  std::string model;
  bool json = false;
  bool verify = false;
  std::optional<int> ranks;  // show the placement over that many ranks (default: one a track)
};

// `ptrt plan`: nothing is run.
struct PlanOptions {
  std::string config;                         // CONFIG.json
  std::vector<std::int64_t> gpus = {8};       // numbers of processors
  std::string gpu = "h100", link = "nvlink";  // names, or files that describe them
  std::int64_t input_len = 1024, output_len = 128;
  std::int64_t batch = 1;  // requests a replica serves together
  std::int64_t step_tokens = 8192;
  std::string json;  // file to write
};

void run_batch(const BatchOptions& options, JobComm& job);
void run_bench(const BenchOptions& options, JobComm& job);
// These do not use other ranks.
void run_init(const InitOptions& options);
void run_quantize(const QuantizeOptions& options);
void run_pack(const PackOptions& options);
void run_inspect(const InspectOptions& options);
void run_plan(const PlanOptions& options);

}  // namespace ptrt
