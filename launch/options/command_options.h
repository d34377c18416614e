// The options of each subcommand of `ptrt`, as parsed.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "kernels/weight_source.h"
#include "launch/job/progress.h"
#include "launch/options/run_options.h"
#include "runtime/requests/request.h"

namespace ptrt {

// `ptrt generate` and `ptrt score`.
struct BatchOptions {
  ModelRunOptions run;
  Task task = Task::generate;
  std::vector<std::string> requests;  // files, one after the other
  std::string output;
  bool resume = false;
  bool ignore_unknown_fields = false;   // of request lines, which are error lines otherwise
  bool unordered = false;               // results as they finish
  bool timings = false;                 // in each result line
  ProgressStyle progress;               // as asked for; --quiet shows none
  std::string shard;                    // "I/N" or "slurm"; empty: the whole file
  std::string chat_template;            // file; empty: that of the model
  std::string chat_date;                // YYYY-MM-DD; empty: the day of the first start
  std::string text;                     // score: a file to score whole, instead of requests
  std::int64_t window = 0, stride = 0;  // of it, in tokens; 0: the model's context, half of the window

  ProgressStyle shown_progress() const { return {progress.shown && !run.quiet, progress.log_every_s}; }
};

struct MergeOptions {
  std::string output;
  std::vector<std::string> shards;  // results of --shard runs
};

struct DoctorOptions {
  ModelRunOptions run;  // as the job would have them; the model may be missing
  std::string output;   // where results would go: a file or a folder
};

struct BenchOptions {
  ModelRunOptions run;
  std::string random_weights;                                         // CONFIG.json, instead of a model file
  std::vector<std::int64_t> input_lens = {512}, output_lens = {128};  // every pair is run
  std::string dataset;                                                // requests file, instead of them
  std::int64_t requests = 0;                                          // 0: 8, or all of the dataset
  std::int64_t warmup = 1;
  // Requests a second that arrive (Poisson); infinity: all are there at the start.
  double request_rate = std::numeric_limits<double>::infinity();
  std::optional<double> forced_acceptance;  // drafts of known outputs are right so often
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
  bool trust_links = false;
  std::string output;
  DType weights = DType::int8;  // that matrices become: int8 or float8_e4m3
  bool split = false;
};

struct PackOptions {
  std::string model;
  bool trust_links = false;
  std::string output;
  WeightLayout layout = WeightLayout::panels;
  bool split = false;
};

struct InspectOptions {
  std::string model;
  bool trust_links = false;
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

using Command = std::variant<std::monostate, BatchOptions, BenchOptions, InitOptions, QuantizeOptions,
                             PackOptions, InspectOptions, PlanOptions, MergeOptions, DoctorOptions>;

}  // namespace ptrt
