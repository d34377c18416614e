// New requests of a running replica: its first rank takes them from a source, and all its ranks get
// them at the end of the same step. How many bytes they are travels with the step's header, so a step
// without new requests costs no message.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/comm/track_comm.h"
#include "runtime/requests/request_source.h"

namespace ptrt {

class RequestDraw {
 public:
  // `replica`: all its ranks. `source` is that of the first rank, null on the others. Both outlive
  // this object.
  RequestDraw(TrackComm& replica, RequestSource* source) : replica_(replica), source_(source) {}

  // On the first rank: takes what has come, and waits for it up to `patience`. Returns the bytes that
  // share() will send, above zero if there is anything.
  std::int64_t take(std::chrono::milliseconds patience);
  // On the first rank: nothing comes after what take() has returned last.
  bool ended() const { return ended_; }

  // The requests that the first rank took last, on every rank; `bytes` is what take() returned there.
  // Collective over the replica.
  std::vector<Request> share(std::int64_t bytes);

 private:
  TrackComm& replica_;
  RequestSource* source_;
  bool ended_ = false;
  std::vector<Request> taken_;
  std::string message_;  // of `taken_`, for the other ranks
};

}  // namespace ptrt
