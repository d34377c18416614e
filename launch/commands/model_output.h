// Shared by the commands that write a model from another one.
#pragma once

#include <string>

#include "model_io/file/model_file.h"

namespace ptrt {

// Throws bad_input where writing a model to `output` would touch a file of `model`.
void check_output(const ModelFile& model, const std::string& output, bool split);

}  // namespace ptrt
