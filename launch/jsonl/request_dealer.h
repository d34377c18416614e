// Which replica of a job gets which requests. Rank 0 reads them as they are needed and hands them out in small
// runs, ahead of need: a replica is given what its batch holds and a stock, and more when it has finished
// some. So a slow replica gets fewer. No result depends on who computes it.
//
// * Requests are dealt in the order of the file. When no more than `tail` of them are left, these are dealt
//   longest first, so that none starts when the others end; with one replica they keep their order.
// * The stock is what a replica finishes in 0.1 s, for the way to rank 0 and back, and at least a quarter of
//   its batch; of one replica alone, a whole batch. It shrinks to nothing towards the end. There is none for a
//   replica that has not finished any request yet, or is less than half as fast as the others: what waits there
//   would be done sooner elsewhere.
// * Of replicas with room the one with the least left to do, in tokens, is served first.
// * Where prompts may share keys and values, some lines are read ahead, once there is nothing to hand out, and a
//   replica gets those that begin alike one after the other (PrefixOrder), among the last ones too as long as there
//   are enough for all. Until they have been read there is no stock.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <optional>
#include <unordered_map>
#include <vector>

#include "launch/jsonl/line_window.h"
#include "launch/jsonl/prefix_order.h"
#include "launch/jsonl/request_stream.h"

namespace ptrt {

class RequestDealer {
 public:
  using Clock = std::chrono::steady_clock;
  // The next line to run or to answer, if there is one now.
  using Source = std::function<Supply(StreamedLine& line)>;

  struct Options {
    std::int64_t replicas = 1;
    std::int64_t max_batch = 1;  // of a replica
    // What the source will give in all, where that is known.
    std::int64_t requests = std::numeric_limits<std::int64_t>::max();
    std::int64_t tail = 1024;
    // Whether requests that begin alike are brought together: of so many lines, and so many tokens of prompts. An
    // automaton counts as tokens of the same size.
    bool by_prefix = false;
    std::int64_t most_lines = 1024, most_tokens = std::int64_t{1} << 20;
  };
  struct Deal {
    std::int64_t replica = 0;
    std::vector<HeldLine> requests;
  };

  RequestDealer(Source source, const Options& options, Clock::time_point start);

  // The next run of requests to hand out, if one is due now. Reads what it needs of the source. Lines that cannot
  // be run go to `rejected`. Does some of the work, and returns an empty deal, where there is more to do first.
  std::optional<Deal> next(Clock::time_point now, std::vector<StreamedLine>& rejected);
  // Replica `number` has finished the request of a line.
  void finished(std::int64_t number, std::int64_t line, Clock::time_point now);
  // Nothing is handed out any more.
  void stop() { stopped_ = true; }
  // All that there will be has been handed out.
  bool done() const { return stopped_ || (at_end_ && window_.empty()); }

 private:
  struct Replica {
    struct Work {
      std::int64_t tokens = 0, samples = 0;
    };
    std::unordered_map<std::int64_t, Work> left;  // by line: what it has not finished
    std::int64_t cost = 0;                        // the sum of its tokens
    std::int64_t samples = 0;                     // and of its samples, a sequence each
    double per_second = 0;                        // samples finished lately
    bool is_known = false;                        // whether it has finished any
    std::int64_t finished = 0;                    // samples since `measured`
    Clock::time_point measured;
  };

  Supply read_one(std::vector<StreamedLine>& rejected);
  bool reads_ahead() const;
  void begin_tail();
  std::int64_t choose(std::int64_t replica);
  bool reads_tail() const;
  double speed(const Replica& replica, Clock::time_point now) const;
  bool is_slow(std::int64_t number, Clock::time_point now) const;
  std::int64_t stock(std::int64_t number, Clock::time_point now) const;
  std::optional<std::int64_t> neediest(Clock::time_point now, std::int64_t& room) const;

  Source source_;
  Options options_;
  std::vector<Replica> replicas_;
  LineWindow<HeldLine> window_;       // read, not handed out
  std::int64_t window_tokens_ = 0;    // that they count as
  PrefixOrder order_;                 // of them, with by_prefix
  std::deque<std::int64_t> longest_;  // in the end: their lines, longest first, and some handed out
  Supply last_supply_ = Supply::line;
  std::int64_t read_ = 0;  // of the source
  bool at_end_ = false, sorted_ = false, stopped_ = false;
};

}  // namespace ptrt
