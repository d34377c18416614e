#include "launch/commands/model/model_output.h"

#include "model_io/file/model_writer.h"

namespace ptrt {

std::vector<NamedFile> files_of(const ModelFile& model) {
  std::vector<NamedFile> files{{"the model", model.path()}};
  for (const std::string& opened : model.files_opened()) files.push_back({"a file of the model:", opened});
  for (std::int64_t track = 0; track < model.config().tracks; ++track)
    files.push_back({"a file of the model:", model.track_file(track)});
  return files;
}

void check_model_output(const std::string& output, const ModelConfig& config, bool split,
                        std::span<const NamedFile> inputs) {
  std::vector<NamedFile> outputs;
  for (const std::string& written : files_written(output, config, split)) outputs.push_back({"-o", written});
  check_outputs(outputs, inputs);
}

}  // namespace ptrt
