// In which order a step's products read their weights. Between two products lie short ops that one thread
// does for all, and waits for the slower thread; memory would stand idle then. So a worker that has nothing
// to do reads the beginning of its next run of weights (ThreadPool::read_ahead), and this class learns which
// that is: lists of products follow one another as they have done before.
#pragma once

#include <cstddef>
#include <span>
#include <unordered_map>
#include <vector>

namespace ptrt {

class WeightOrder {
 public:
  using Bytes = std::span<const std::byte>;

  // A list of products, known by its first matrix.
  struct List {
    // The first weights of each worker's run the last time, for the worker that does the run to set.
    std::vector<Bytes> begins;

    // What came after it the last two times, both times the same; null if there is no such list.
    const List* follower() const { return sure ? next : nullptr; }

   private:
    friend class WeightOrder;
    const List* next = nullptr;
    bool sure = false;
  };

  explicit WeightOrder(int workers) : workers_(static_cast<std::size_t>(workers)) {}

  // The list that is about to run, which from now on follows the one of the call before.
  List& begin(const std::byte* first_matrix);

 private:
  std::size_t workers_;
  std::unordered_map<const std::byte*, List> lists_;  // as many as a step has, whatever runs
  List* last_ = nullptr;
};

}  // namespace ptrt
