#include "launch/commands/model_output.h"

#include <filesystem>
#include <system_error>
#include <vector>

#include "kernels/base/error.h"
#include "model_io/file/model_writer.h"

namespace ptrt {

void check_output(const ModelFile& model, const std::string& output, bool split) {
  std::vector<std::string> inputs{model.path()};
  for (std::int64_t track = 0; track < model.config().tracks; ++track)
    inputs.push_back(model.track_file(track));
  for (const std::string& written : files_written(output, model.config(), split))
    for (const std::string& input : inputs)
      if (std::error_code ignored; std::filesystem::equivalent(written, input, ignored))
        throw_bad_input("-o {} would overwrite {} of the model itself", output, input);
}

}  // namespace ptrt
