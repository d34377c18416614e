// The requests of one replica, on its first rank: the result thread puts in what rank 0 hands out, the engine
// draws it, and the thread takes a request out again when its result is written.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "launch/jsonl/request_stream.h"
#include "runtime/requests/request_source.h"

namespace ptrt {

// Requests as a message of rank 0; never empty.
std::string message_of(const std::vector<HeldLine>& requests);
// The message that nothing follows.
std::string last_message();

class RequestInbox final : public RequestSource {
 public:
  // By the result thread.
  void put(std::vector<HeldLine> requests);
  // No more requests will be put in.
  void end();
  // Takes a message of rank 0. True when it was the last one.
  bool put_message(std::string_view message);
  // On rank 0, whose thread says so often that it is alive: take() returns nothing without a new sign of that. So where
  // the thread is stuck the engine comes to a halt, which the watchdog notices.
  void sign_of_life();
  // take() throws this from now on.
  void fail(std::exception_ptr error);
  // Of a request that has been drawn, once.
  struct Taken {
    HeldLine line;
    std::chrono::steady_clock::time_point put;  // when it came
  };
  Taken take_out(std::int64_t line);

  // By the engine.
  bool take(std::vector<Request>& requests, std::chrono::milliseconds patience) override;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Request> waiting_;
  bool ended_ = false;
  std::uint64_t signs_ = 0, signs_seen_ = 0;  // of life
  std::exception_ptr error_;
  std::unordered_map<std::int64_t, Taken> kept_;  // by line, until taken out; the result thread's alone
};

}  // namespace ptrt
