#include "launch/options/file_options.h"

#include <string>

namespace ptrt {

CLI::App* add_init(CLI::App& app, InitOptions& options) {
  CLI::App* command = app.add_subcommand("init", "Write a model with random weights");
  command->add_option("CONFIG", options.config_path, "Model configuration (JSON)")->required();
  command->add_option("-o,--output", options.output, "Model file to write")->required();
  command->add_option("--seed", options.seed, "Seed of the weights")->capture_default_str();
  command
      ->add_option_function<std::string>(
          "--dtype",
          [&options](const std::string& name) {
            options.dtype = name == "float32" ? DType::float32 : DType::bfloat16;
          },
          "Type of the stored weights (default bfloat16)")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  command->add_flag("--split", options.split, "One file a track, beside the main file");
  command->footer(R"(Examples:
  ptrt init config.json -o model.h5
  ptrt init config.json -o model.h5 --seed 7 --dtype float32 --split      (model.h5 and one file a track beside it))");
  return command;
}

CLI::App* add_quantize(CLI::App& app, QuantizeOptions& options) {
  CLI::App* command = app.add_subcommand("quantize", "Write a model with its matrices as int8");
  command->add_option("MODEL", options.model, "Model file (HDF5) of floating weights")->required();
  command->add_option("-o,--output", options.output, "Model file to write")->required();
  command
      ->add_option("--weights", options.weights,
                   "Type of the matrices; int8 alone: groups of 32 along a row with a float16 scale.\n"
                   "Norms, routers and embeddings stay as stored")
      ->required()
      ->check(CLI::IsMember({"int8"}));
  command->add_flag("--split", options.split, "One file a track, beside the main file");
  command->footer(R"(Examples:
  ptrt quantize model.h5 -o model-int8.h5 --weights int8
  ptrt generate model-int8.h5 requests.jsonl -o results.jsonl     (the same results as model.h5 with --weights int8))");
  return command;
}

CLI::App* add_pack(CLI::App& app, PackOptions& options) {
  CLI::App* command = app.add_subcommand(
      "pack", "Write a model as the CPU's products take it, to be mapped instead of loaded");
  command->add_option("MODEL", options.model, "Model file (HDF5)")->required();
  command->add_option("-o,--output", options.output, "Model file to write")->required();
  command
      ->add_option_function<std::string>(
          "--layout",
          [&options](const std::string& name) {
            options.layout = name == "rows" ? WeightLayout::rows : WeightLayout::panels;
          },
          "panels: matrices lie in the file as in a CPU rank's memory, which maps them; rows: the plain "
          "file,\n"
          "for other programs (default panels)")
      ->check(CLI::IsMember({"panels", "rows"}));
  command->add_flag("--split", options.split, "One file a track, beside the main file");
  command->footer(R"(Examples:
  ptrt pack model.h5 -o model-packed.h5
  ptrt generate model-packed.h5 requests.jsonl -o results.jsonl     (the same results, a quicker start)
  ptrt pack model-packed.h5 -o model.h5 --layout rows)");
  return command;
}

CLI::App* add_inspect(CLI::App& app, InspectOptions& options) {
  CLI::App* command =
      app.add_subcommand("inspect", "Show a model's configuration, sizes, placement and checksums");
  command->add_option("MODEL", options.model, "Model file (HDF5)")->required();
  command->add_flag("--json", options.json, "One JSON object instead of a table");
  command->add_flag("--verify", options.verify, "Read everything and check every checksum");
  command->add_option("--ranks", options.ranks, "Show the placement over that many ranks")
      ->check(CLI::Range(1, 1 << 20));
  command->footer(R"(Examples:
  ptrt inspect model.h5
  ptrt inspect model.h5 --verify            (exit status 2 when a dataset does not match its checksum)
  ptrt inspect model.h5 --json --ranks 4)");
  return command;
}

}  // namespace ptrt
