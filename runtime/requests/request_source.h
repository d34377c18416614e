// Where an engine's requests come from while it runs.
#pragma once

#include <chrono>
#include <vector>

#include "runtime/requests/request.h"

namespace ptrt {

// Called on the replica's first rank, by the thread that runs the decode loop.
class RequestSource {
 public:
  virtual ~RequestSource() = default;
  // Appends the requests that have come since the last call, in the order in which they are to be
  // admitted; their lines differ. Where there are none, waits for some, `patience` at most. Returns
  // whether more may come.
  virtual bool take(std::vector<Request>& requests, std::chrono::milliseconds patience) = 0;
};

}  // namespace ptrt
