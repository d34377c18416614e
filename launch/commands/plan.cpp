// `ptrt plan`: the layouts of a model on so many processors, and the speed and memory predicted for each.
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "kernels/base/error.h"
#include "kernels/base/files.h"
#include "launch/commands/commands.h"
#include "launch/job/report_files.h"
#include "launch/job/standard_streams.h"
#include "launch/plan/cost_model.h"
#include "launch/plan/hardware.h"

namespace ptrt {
namespace {

using nlohmann::ordered_json;

struct Row {
  std::int64_t world;
  bool dense;  // the tensor-parallel twin
  Layout layout;
  Prediction prediction;
};

// PT layouts of the model, then its dense twin's under tensor parallelism alone.
std::vector<Row> rows_of(const PlanOptions& options, const ModelConfig& config, const GpuSpec& gpu,
                         const LinkSpec& link) {
  const Workload work{options.input_len, options.output_len, options.batch, options.step_tokens};
  std::vector<Row> rows;
  const auto add = [&](const ModelConfig& model, bool dense, std::int64_t world) {
    for (const Layout& layout : layouts_of(model, world)) {
      const bool joined = link.ranks == 0 || layout.fusion_ranks * layout.tensor_parallel <= link.ranks;
      if (joined) rows.push_back({world, dense, layout, predict(model, layout, work, gpu, link)});
    }
  };
  for (const std::int64_t world : options.gpus) {
    add(config, false, world);
    if (config.tracks > 1) add(dense_twin(config), true, world);
  }
  return rows;
}

std::string name_of(const Row& row, const ModelConfig& config) {
  const Layout& l = row.layout;
  if (row.dense || config.tracks == 1)
    return l.tensor_parallel > 1 ? fmt::format("TP {}", l.tensor_parallel) : "dense";
  std::string name = fmt::format("PT {} ranks", l.fusion_ranks);
  if (l.tensor_parallel > 1) name += fmt::format(" x TP {}", l.tensor_parallel);
  return name;
}

constexpr double kGiB = 1073741824.0;

void print_table(const PlanOptions& options, const ModelConfig& config, const GpuSpec& gpu,
                 const LinkSpec& link, const std::vector<Row>& rows) {
  print_out(
      "{}: {} tracks, {} layers, {} sync points | {} | {} | {} in, {} out, batch {} a replica | "
      "PREDICTED\n\n",
      config.name, config.tracks, config.layers, config.tracks > 1 ? config.blocks() : 0, gpu.name, link.name,
      options.input_len, options.output_len, options.batch);
  print_out("{:>6} {:<20} {:>8} {:>12} {:>9} {:>6} {:>9} {:>9} {:>13} {:>6} {:>7}\n", "GPUs", "layout",
            "replicas", "weights GiB", "KV GiB", "fits", "TTFT ms", "TPOT ms", "output tok/s", "syncs",
            "sync %");
  for (const Row& row : rows) {
    const Prediction& p = row.prediction;
    print_out("{:>6} {:<20} {:>8} {:>12.1f} {:>9.1f} {:>6} {:>9.1f} {:>9.2f} {:>13.1f} {:>6.0f} {:>7.1f}\n",
              row.world, name_of(row, config), row.layout.replicas, p.weight_bytes / kGiB, p.kv_bytes / kGiB,
              p.fits ? "yes" : "no", p.ttft_ms, p.tpot_ms, p.output_tokens_per_s, p.sync_points,
              100 * p.sync_fraction);
  }
}

ordered_json to_json(const StepCounts& counts) {
  return {{"weight_bytes", counts.weight_bytes},
          {"ops", counts.ops},
          {"kv_bytes", counts.kv_bytes},
          {"attention_ops", counts.attention_ops},
          {"hops", counts.hops},
          {"messages", counts.messages},
          {"moved_bytes", counts.moved_bytes},
          {"host_hops", counts.host_hops},
          {"host_bytes", counts.host_bytes}};
}

ordered_json to_json(const Row& row, const ModelConfig& config) {
  const Prediction& p = row.prediction;
  ordered_json json;
  json["gpus"] = row.world;
  json["layout"] = name_of(row, config);
  json["dense"] = row.dense || config.tracks == 1;
  json["fusion_ranks"] = row.layout.fusion_ranks;
  json["tensor_parallel"] = row.layout.tensor_parallel;
  json["replicas"] = row.layout.replicas;
  json["weight_bytes"] = p.weight_bytes;
  json["kv_bytes"] = p.kv_bytes;
  json["fits"] = p.fits;
  json["ttft_ms"] = p.ttft_ms;
  json["tpot_ms"] = p.tpot_ms;
  json["output_tokens_per_s"] = p.output_tokens_per_s;
  json["sync_points_per_forward"] = p.sync_points;
  json["waits"] = p.waits;
  json["sync_time_fraction"] = p.sync_fraction;
  json["prefill"] = to_json(p.prefill);
  json["decode"] = to_json(p.decode);
  return json;
}

}  // namespace

void run_plan(const PlanOptions& options) {
  const ModelConfig config =
      parse_config(read_text_file(options.config, "the configuration"), options.config);
  std::vector<NamedFile> inputs{{"the configuration", options.config}};
  if (!is_known_gpu(options.gpu)) inputs.push_back({"--gpu", options.gpu});
  if (!is_known_link(options.link)) inputs.push_back({"--link", options.link});
  check_reports(std::vector<NamedFile>{{"--json", options.json}}, inputs);
  const GpuSpec gpu = gpu_of(options.gpu);
  const LinkSpec link = link_of(options.link);
  const std::vector<Row> rows = rows_of(options, config, gpu, link);
  if (rows.empty())
    throw_bad_input("no layout of {} tracks and its replicas takes {} GPUs over {}", config.tracks,
                    fmt::join(options.gpus, ", "), link.name);
  print_table(options, config, gpu, link, rows);
  if (options.json.empty()) return;
  std::vector<ordered_json> all;
  for (const Row& row : rows) all.push_back(to_json(row, config));
  write_json(options.json, all);
}

}  // namespace ptrt
