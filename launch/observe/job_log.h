// --log-file: what a rank says, and the phases it goes through, with times, in a file of its own.
#pragma once

#include <span>
#include <string>

#include "kernels/base/output_file.h"
#include "runtime/comm/track_comm.h"

namespace ptrt {

// Where the name says %r the rank, %h the host, %j Slurm's job number (0 without one), %% a percent sign. Throws
// bad_input on anything else after a percent sign.
std::string name_for_rank(const std::string& pattern, int rank, const std::string& host);

// From here on this rank's messages go to its file too, after what is there from earlier runs. Throws bad_input where
// several ranks would share a file, where it is one of `inputs`, cannot be opened, or is no log of this program.
void open_job_log(const std::string& pattern, const JobComm& job, std::span<const NamedFile> inputs);

}  // namespace ptrt
