// One line on standard error, with rank and host, from a process that a signal ends.
#pragma once

#include <string>

namespace ptrt {

// Call before MPI starts: MPI libraries leave handlers that are there alone, and Open MPI's own may wait for
// ever, for a lock that the interrupted code holds. SIGSEGV, SIGFPE, SIGILL and SIGABRT are reported and then
// do what they always do (status, core dump), unless a sanitizer handles them. SIGBUS, raised by a page of a
// mapped file that cannot be read, is an error of this rank, exit status 1. SIGXFSZ is ignored: the write
// fails with a message instead. `who` as name_in_crash_reports() takes it.
void install_crash_handlers(const std::string& who);

// "rank 2 of 4 (host)"; empty for a process that is alone.
void name_in_crash_reports(const std::string& who);

// The line goes there too; `file` stays open.
void also_report_crashes_to(int file);

}  // namespace ptrt
