// Fault injection for tests: PTRT_FAULT="rank=R,at=POINT[,after=N]" makes rank R throw when it passes POINT for
// the (N+1)-th time; with ",pause_ms=M" it sleeps instead, M milliseconds each time from then on, and with
// ",signal=S" it raises that signal once. Points: start, load, step, sync, store, finish, publish, end. Unset, a point
// costs one predictable branch.
#pragma once

#include <string_view>

namespace ptrt {

// Reads PTRT_FAULT for this rank of the job. Throws bad_input when it is malformed.
void arm_faults(int rank);
// Throws a failure, sleeps or raises a signal when armed for this point.
void fault_point(std::string_view point);

}  // namespace ptrt
