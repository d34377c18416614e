// Descriptions of processors and links for `ptrt plan`: by name, or from a JSON file.
#pragma once

#include <string>

#include "launch/plan/cost_model.h"

namespace ptrt {

// h100, h200, a100, or a file. Throws bad_input that names the key which is missing, unknown, given twice or
// not a number from 1e-9 to 1e15; some may also be 0.
GpuSpec gpu_of(const std::string& name);
// nvlink, ib, or a file.
LinkSpec link_of(const std::string& name);

// Whether it is a name and not a file.
bool is_known_gpu(const std::string& name);
bool is_known_link(const std::string& name);

}  // namespace ptrt
