#include "runtime/grammar/byte_walk.h"

#include <algorithm>
#include <utility>

namespace ptrt {
namespace {

constexpr std::size_t kNodeBytes = 96;  // of a set in a map, and of its blocks of memory

// Sorts by where they start, and returns for each state the place of its first.
template <typename Arrow>
std::vector<std::int32_t> sort_by_start(std::vector<Arrow>& arrows, std::int32_t states) {
  std::ranges::stable_sort(arrows, {}, &Arrow::from);
  std::vector<std::int32_t> first(static_cast<std::size_t>(states) + 1, 0);
  for (const Arrow& arrow : arrows) first[static_cast<std::size_t>(arrow.from) + 1]++;
  for (std::size_t s = 1; s < first.size(); s++) first[s] += first[s - 1];
  return first;
}

}  // namespace

std::size_t ByteWalk::SetHash::operator()(const Set& set) const {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const std::int32_t state : set) hash = (hash ^ static_cast<std::uint32_t>(state)) * 0x100000001b3u;
  return static_cast<std::size_t>(hash ^ (hash >> 29));
}

ByteWalk::ByteWalk(std::shared_ptr<const ByteAutomaton> automaton)
    : automaton_(std::move(automaton)), edges_(automaton_->edges), jumps_(automaton_->jumps) {
  first_edge_ = sort_by_start(edges_, automaton_->states);
  first_jump_ = sort_by_start(jumps_, automaton_->states);
  forget_others({});
}

// All but the states.
std::size_t ByteWalk::arrow_bytes() const {
  const std::size_t numbers = first_edge_.capacity() + first_jump_.capacity() + marks_.capacity();
  return sizeof(ByteWalk) + automaton_->bytes() + edges_.capacity() * sizeof(ByteAutomaton::Edge) +
         jumps_.capacity() * sizeof(ByteAutomaton::Jump) + numbers * sizeof(std::int32_t);
}

void ByteWalk::forget_others(std::span<std::int32_t> kept) {
  std::vector<Set> sets;
  for (const std::int32_t state : kept)
    sets.push_back(state == kDead ? Set() : *states_[static_cast<std::size_t>(state)].set);
  states_.clear();
  ids_ = {};
  marks_.assign(static_cast<std::size_t>(automaton_->states), 0);
  mark_ = 0;
  bytes_ = arrow_bytes();
  state_of({0});
  for (std::size_t i = 0; i < kept.size(); i++)
    if (kept[i] != kDead) kept[i] = state_of(std::move(sets[i]));
}

std::int32_t ByteWalk::state_of(Set targets) {
  mark_++;
  Set found, set;
  const auto reach = [&](std::int32_t state) {
    if (std::exchange(marks_[static_cast<std::size_t>(state)], mark_) != mark_) found.push_back(state);
  };
  for (const std::int32_t state : targets) reach(state);
  while (!found.empty()) {
    const std::int32_t state = found.back();
    found.pop_back();
    const auto s = static_cast<std::size_t>(state);
    if (state == automaton_->accept || first_edge_[s] < first_edge_[s + 1]) set.push_back(state);
    for (std::int32_t j = first_jump_[s]; j < first_jump_[s + 1]; j++)
      reach(jumps_[static_cast<std::size_t>(j)].to);
  }
  std::ranges::sort(set);
  const bool accepts = std::ranges::binary_search(set, automaton_->accept);
  const auto [place, is_new] = ids_.try_emplace(std::move(set), static_cast<std::int32_t>(states_.size()));
  if (is_new) {
    State& state = states_.emplace_back();
    state.set = &place->first;
    state.accepts = accepts;
    state.next.fill(kUnknown);
    bytes_ += sizeof(State) + sizeof(std::int32_t) * place->first.capacity() + kNodeBytes;
  }
  return place->second;
}

std::int32_t ByteWalk::compute_next(std::int32_t state, unsigned char byte) {
  Set targets;
  for (const std::int32_t from : *states_[static_cast<std::size_t>(state)].set) {
    const auto s = static_cast<std::size_t>(from);
    for (std::int32_t e = first_edge_[s]; e < first_edge_[s + 1]; e++) {
      const ByteAutomaton::Edge& edge = edges_[static_cast<std::size_t>(e)];
      if (byte >= edge.low && byte <= edge.high) targets.push_back(edge.to);
    }
  }
  return targets.empty() ? kDead : state_of(std::move(targets));
}

std::int32_t ByteWalk::next(std::int32_t state, unsigned char byte) {
  const std::int32_t known = states_[static_cast<std::size_t>(state)].next[byte];
  if (known != kUnknown) return known;
  const std::int32_t computed = compute_next(state, byte);
  states_[static_cast<std::size_t>(state)].next[byte] = computed;
  return computed;
}

}  // namespace ptrt
