// Options of the commands that write and show files, and of `ptrt plan`.
#include "launch/options/parsers.h"

namespace ptrt {
namespace {

void add_model_output(CLI::App& command, std::string& path, bool& split) {
  add_path(command, "-o,--output", path, "Model file to write")->required();
  command.add_flag("--split", split, "Write one file a track beside the main file");
}

}  // namespace

void add_init(CLI::App& app, Command& chosen) {
  const auto options = std::make_shared<InitOptions>();
  CLI::App* command = add_command(app, "init", "Write a model with random weights", options, chosen);
  add_path(*command, "CONFIG", options->config_path, "Model configuration (JSON)")->required();
  add_model_output(*command, options->output, options->split);
  begin_group(*command, "Weights");
  add_seed(*command, options->seed, "Seed of the weights");
  add_choice<DType>(*command, "--dtype", options->dtype,
                    {{"float32", DType::float32}, {"bfloat16", DType::bfloat16}},
                    "Type of the stored weights");
  command->footer(R"(Examples:
  ptrt init config.json -o model.h5
  ptrt init config.json -o model.h5 --seed 7 --dtype float32 --split      (model.h5 and one file a track beside it))");
}

void add_quantize(CLI::App& app, Command& chosen) {
  const auto options = std::make_shared<QuantizeOptions>();
  CLI::App* command =
      add_command(app, "quantize", "Write a model with its matrices as int8 or float8", options, chosen);
  add_model(*command, options->model, options->trust_links, "Model file (HDF5) of floating-point weights")
      ->required();
  add_model_output(*command, options->output, options->split);
  begin_group(*command, "Weights");
  add_choice<DType>(
      *command, "--weights", options->weights, {{"int8", DType::int8}, {"fp8_e4m3", DType::float8_e4m3}},
      "Type of the matrices. int8: groups of 32 along a row with a float16 scale; fp8_e4m3: 8-bit\n"
      "floats, a row with a scale that is a power of two. Norms, routers and embeddings stay as stored")
      ->default_str("")  // it must be given
      ->required();
  command->footer(R"(Examples:
  ptrt quantize model.h5 -o model-int8.h5 --weights int8
  ptrt generate model-int8.h5 requests.jsonl -o results.jsonl     (the same results as model.h5 with --weights int8)
  ptrt quantize model.h5 -o model-fp8.h5 --weights fp8_e4m3       (CPU ranks widen it on load, to bfloat16))");
}

void add_pack(CLI::App& app, Command& chosen) {
  const auto options = std::make_shared<PackOptions>();
  CLI::App* command = add_command(
      app, "pack", "Write a model in the layout of the CPU's products, to be mapped instead of loaded",
      options, chosen);
  add_model(*command, options->model, options->trust_links)->required();
  add_model_output(*command, options->output, options->split);
  begin_group(*command, "Weights");
  add_choice<WeightLayout>(*command, "--layout", options->layout,
                           {{"panels", WeightLayout::panels}, {"rows", WeightLayout::rows}},
                           "panels: matrices lie in the file as in a CPU rank's memory, which maps them;\n"
                           "rows: the plain file, for other programs");
  command->footer(R"(Examples:
  ptrt pack model.h5 -o model-packed.h5
  ptrt generate model-packed.h5 requests.jsonl -o results.jsonl     (the same results, a quicker start)
  ptrt pack model-packed.h5 -o model.h5 --layout rows)");
}

void add_inspect(CLI::App& app, Command& chosen) {
  const auto options = std::make_shared<InspectOptions>();
  CLI::App* command = add_command(
      app, "inspect", "Show a model's configuration, sizes, placement and checksums", options, chosen);
  add_model(*command, options->model, options->trust_links)->required();
  command->add_flag("--json", options->json, "One JSON object instead of a table");
  command->add_flag("--verify", options->verify,
                    "Read everything; check every checksum, and that all weights are finite");
  command->add_option("--ranks", options->ranks, "Show the placement over that many ranks")
      ->transform(in_range(1, 1 << 20));
  command->footer(R"(Examples:
  ptrt inspect model.h5
  ptrt inspect model.h5 --verify            (exit status 2 when a dataset is damaged or not finite)
  ptrt inspect model.h5 --json --ranks 4)");
}

void add_merge(CLI::App& app, Command& chosen) {
  const auto options = std::make_shared<MergeOptions>();
  CLI::App* command =
      add_command(app, "merge", "Put the results of all shards of a request file together", options, chosen);
  add_path(*command, "OUT", options->output, "Results to write: those of one job that runs the whole file")
      ->required();
  command
      ->add_option("SHARD", options->shards, "Results of --shard runs, each with its .shard file beside it")
      ->required()
      ->check(CLI::Validator(
          [](const std::string& given) {
            return given.empty() ? std::string("expected the name of a file, found ''") : std::string();
          },
          ""));
  command->footer(R"(Examples:
  ptrt generate model.h5 requests.jsonl -o results-0.jsonl --shard 0/2
  ptrt generate model.h5 requests.jsonl -o results-1.jsonl --shard 1/2
  ptrt merge results.jsonl results-0.jsonl results-1.jsonl
Shards may be given in any order; they are checked before anything is written, and stay as they are.)");
}

void add_plan(CLI::App& app, Command& chosen) {
  const auto options = std::make_shared<PlanOptions>();
  CLI::App* command = add_command(
      app, "plan", "Predict memory, TTFT, TPOT and throughput on so many processors", options, chosen);
  add_path(*command, "CONFIG", options->config, "Model configuration (JSON)")->required();
  add_path(*command, "--json", options->json, "File for the table as JSON");
  begin_group(*command, "Hardware");
  command->add_option("--gpus", options->gpus, "Numbers of processors, 1 to 4096")
      ->transform(in_range(1, 4096))
      ->delimiter(',')
      ->capture_default_str();
  add_path(*command, "--gpu", options->gpu, "a100, h100, h200, or a JSON file (docs/PLAN.md)")
      ->capture_default_str();
  add_path(*command, "--link", options->link, "nvlink, ib, or a JSON file")->capture_default_str();
  begin_group(*command, "Requests");
  const auto add_count = [&](const char* name, std::int64_t& value, const char* what) {
    command->add_option(name, value, what)
        ->transform(in_range(std::int64_t{1}, std::int64_t{1} << 31))
        ->capture_default_str();
  };
  add_count("--input-len", options->input_len, "Prompt tokens");
  add_count("--output-len", options->output_len, "Tokens to generate");
  add_count("--batch", options->batch, "Requests that a replica serves together");
  add_count("--max-step-tokens", options->step_tokens, "Prompt tokens of a step");
  command->footer(R"(Examples:
  ptrt plan config.json --gpus 8 --gpu h100 --link nvlink --input-len 4096 --output-len 128 --batch 64
  ptrt plan config.json --gpus 8,16,64 --gpu my-gpu.json --link ib
The table also has the model's dense twin under tensor parallelism: as deep, with as many parameters.)");
}

}  // namespace ptrt
