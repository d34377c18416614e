// Which process of a job tells why it ends. Each failure is seen by several ranks, within less time than a launcher
// needs to end them, and people want one message.
#pragma once

#include <string>

namespace ptrt {

// Seconds within which a launcher has ended every process of a job. A process that is not the first to report waits so
// long before it reports all the same: the first may be stopped, or cut off from the launcher.
constexpr double kLauncherEndsJob = 10;

// Seconds after the first within which all others that see the same failure ask. So long the first stays, where the
// launcher learns from nothing else than its exit that the job has failed.
constexpr double kAllHaveAsked = 4;

// Whether this process is the first of this host's in the job named `job` to ask, and asks for the first time. Also true
// where the system cannot tell: better two messages than none.
bool first_to_report_here(const std::string& job);

// The same for the job that the launcher started this process in; true without a launcher.
bool first_to_report_here();

}  // namespace ptrt
