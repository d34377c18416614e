// In which order a step's products read their weights. Between two products lie short ops that one
// thread does for all, and waits for the slower thread; memory would stand idle then. So a worker
// that has nothing to do reads the beginning of its next run of weights (ThreadPool::read_ahead),
// and this class learns which that is: lists of products follow one another as they have done
// before.
//
// A step comes by each list once, with all weights in between, so what is kept of a list has left
// the caches when it is wanted. Hence few lines a list, at places that are known early.
#pragma once

#include <cstddef>
#include <span>
#include <unordered_map>
#include <vector>

namespace ptrt {

class WeightOrder {
 public:
  using Bytes = std::span<const std::byte>;
  static constexpr int kNone = -1;

  explicit WeightOrder(int workers) : workers_(static_cast<std::size_t>(workers)) {}

  // The number of the list that is about to run, known by its first matrix; it follows the one of
  // the call before.
  int begin(const std::byte* first_matrix);
  // What came after a list the last two times, both times the same, or kNone.
  int follower(int list) const {
    const List& l = lists_[static_cast<std::size_t>(list)];
    return l.sure ? l.next : kNone;
  }
  // The first weights of a worker's run the last time, for whoever does the run to set. Stays where
  // it is until the next begin().
  Bytes& begin_of_run(int list, int worker) {
    return begins_[static_cast<std::size_t>(list) * workers_ + static_cast<std::size_t>(worker)];
  }

 private:
  struct List {
    const std::byte* first_matrix;
    int next = kNone;
    bool sure = false;
  };

  int find(const std::byte* first_matrix);

  std::size_t workers_;
  std::vector<List> lists_;    // as many as the model has matrices at most, experts counted
  std::vector<Bytes> begins_;  // [lists, workers]
  std::unordered_map<const std::byte*, int> numbers_;
  int last_ = kNone;
};

}  // namespace ptrt
