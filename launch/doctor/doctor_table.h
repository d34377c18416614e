// The table of `ptrt doctor`: a property a row, ranks that are alike on one line.
#pragma once

#include <string>
#include <vector>

#include "launch/doctor/judge.h"

namespace ptrt {

// `trial`: what a job with this model and these options would be; empty where none was tried.
std::string doctor_table(const Launch& launch, const std::string& trial);

// A line for each finding, then the verdict.
std::string doctor_verdict(const std::vector<Finding>& findings, int ranks);

}  // namespace ptrt
