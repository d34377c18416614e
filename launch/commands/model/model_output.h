// Shared by the commands that write files: none of them may be a file that they read.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kernels/base/output_file.h"
#include "model_io/file/model_file.h"

namespace ptrt {

// The files of a model: the main one, those that were opened, and those of its tracks.
std::vector<NamedFile> files_of(const ModelFile& model);

// Throws bad_input where writing a model to `output` would touch an input.
void check_model_output(const std::string& output, const ModelConfig& config, bool split,
                        std::span<const NamedFile> inputs);

}  // namespace ptrt
