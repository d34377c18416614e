// The pages of a KV pool, which sequences share where their prompts begin alike.
//
// A whole page of prompt tokens is *named* by the page before it and its own tokens. A name therefore stands for
// all tokens up to the page's end, and names are compared token by token, so keys and values found by name are
// those that would be computed. Pages that nobody uses any more stay named until their room is needed: the one
// that was used longest ago goes first, the end of a chain before its beginning.
//
// What it does is a function of the calls, so it is the same on every rank.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "kernels/kv_pool.h"
#include "runtime/model/kv_cache.h"

namespace ptrt {

class PrefixCache {
 public:
  // Chains of different roots share nothing; roots are negative.
  using Root = std::int64_t;

  explicit PrefixCache(std::int64_t pages);

  // Pages that take() can give: those that have no name, and those that nobody uses.
  std::int64_t free() const { return allocator_.free() + unused_count_; }
  // As long as this number is the same, free() does not grow, nor does any match.
  std::uint64_t gains() const { return gains_; }

  struct Match {
    std::int64_t pages = 0;   // that have the names of the first whole pages of the tokens
    std::int64_t unused = 0;  // of them: free() falls by so many when they are shared
  };
  // At most `most` pages.
  Match match(Root root, std::span<const std::int32_t> tokens, std::int64_t most) const;
  // Appends the first `count` pages of a match; each has one user more.
  void share(Root root, std::span<const std::int32_t> tokens, std::int64_t count,
             std::vector<std::int32_t>& pages);
  // A page without a name, with one user. Requires free() > 0.
  std::int32_t take();
  // Names the whole pages of `tokens`, of which `pages` are the first in order, up to one whose name another page
  // has. Their user must write them before another user's rows read them. Returns how many of `pages` have a name.
  std::int64_t name(Root root, std::span<const std::int32_t> tokens, std::span<const std::int32_t> pages);
  // Their user uses them no more, and has written the first `written` tokens of them. A page that is not whole has
  // no other user, and loses its name. Empties `pages`.
  void release(std::vector<std::int32_t>& pages, std::int64_t written);

 private:
  struct Name {
    std::int64_t before = 0;  // the page before, or the root
    std::array<std::int32_t, kPageTokens> tokens = {};

    bool operator==(const Name&) const = default;
  };
  struct NameHash {
    std::size_t operator()(const Name& name) const;
  };
  struct Page {
    const Name* name = nullptr;  // in named_; null: none
    std::int32_t users = 0;
    std::int32_t after = 0;  // named pages of which this is the page before
    // In the ring of unused pages that have a name, from the one used longest ago on.
    std::int32_t previous = -1, next = -1;
  };

  static Name name_of(std::int64_t before, std::span<const std::int32_t> tokens, std::int64_t page);
  std::int32_t find(const Name& name) const;  // -1: no page has it
  Page& at(std::int32_t page) { return pages_[static_cast<std::size_t>(page)]; }
  void forget(std::int32_t page);
  void append_unused(std::int32_t page);
  void remove_unused(std::int32_t page);

  PageAllocator allocator_;
  std::vector<Page> pages_;  // and the head of the ring behind them
  std::int64_t unused_count_ = 0;
  std::uint64_t gains_ = 0;
  std::unordered_map<Name, std::int32_t, NameHash> named_;
};

}  // namespace ptrt
