#include "runtime/schedule/prefix_cache.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace ptrt {

PrefixCache::PrefixCache(std::int64_t pages)
    : allocator_(pages), pages_(static_cast<std::size_t>(pages) + 1) {
  const auto head = static_cast<std::int32_t>(pages);
  at(head).previous = at(head).next = head;
}

std::size_t PrefixCache::NameHash::operator()(const Name& name) const {
  auto hash = static_cast<std::uint64_t>(name.before);
  const auto mix = [&hash](std::uint64_t word) {
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  };
  for (std::size_t i = 0; i < name.tokens.size(); i += 2)
    mix(static_cast<std::uint64_t>(static_cast<std::uint32_t>(name.tokens[i])) << 32 |
        static_cast<std::uint32_t>(name.tokens[i + 1]));
  return hash;
}

PrefixCache::Name PrefixCache::name_of(std::int64_t before, std::span<const std::int32_t> tokens,
                                       std::int64_t page) {
  static_assert(kPageTokens % 2 == 0);
  Name name{before, {}};
  std::ranges::copy(tokens.subspan(static_cast<std::size_t>(page * kPageTokens), kPageTokens),
                    name.tokens.begin());
  return name;
}

std::int32_t PrefixCache::find(const Name& name) const {
  const auto found = named_.find(name);
  return found == named_.end() ? -1 : found->second;
}

PrefixCache::Match PrefixCache::match(Root root, std::span<const std::int32_t> tokens,
                                      std::int64_t most) const {
  Match match;
  const std::int64_t end = std::min(most, std::ssize(tokens) / kPageTokens);
  for (std::int64_t before = root; match.pages < end; match.pages++) {
    const std::int32_t page = find(name_of(before, tokens, match.pages));
    if (page < 0) break;
    if (pages_[static_cast<std::size_t>(page)].users == 0) match.unused++;
    before = page;
  }
  return match;
}

void PrefixCache::share(Root root, std::span<const std::int32_t> tokens, std::int64_t count,
                        std::vector<std::int32_t>& pages) {
  std::int64_t before = root;
  for (std::int64_t i = 0; i < count; i++) {
    const std::int32_t page = find(name_of(before, tokens, i));
    PTRT_CHECK(page >= 0);
    if (at(page).users++ == 0) remove_unused(page);
    pages.push_back(page);
    before = page;
  }
}

std::int32_t PrefixCache::take() {
  PTRT_CHECK(free() > 0);
  if (allocator_.free() == 0) {
    const std::int32_t oldest = pages_.back().next;
    remove_unused(oldest);
    forget(oldest);
    allocator_.give_back(oldest);
  }
  const std::int32_t page = allocator_.take();
  at(page).users = 1;
  return page;
}

std::int64_t PrefixCache::name(Root root, std::span<const std::int32_t> tokens,
                               std::span<const std::int32_t> pages) {
  const std::int64_t end = std::min(std::ssize(tokens) / kPageTokens, std::ssize(pages));
  gains_++;
  std::int64_t before = root;
  for (std::int64_t i = 0; i < end; i++) {
    const std::int32_t page = pages[static_cast<std::size_t>(i)];
    if (at(page).name == nullptr) {
      const auto [named, is_new] = named_.emplace(name_of(before, tokens, i), page);
      if (!is_new) return i;
      at(page).name = &named->first;
      if (before >= 0) at(static_cast<std::int32_t>(before)).after++;
    }
    before = page;
  }
  return end;
}

// From the end on: so a page becomes unused after those that follow it, and goes after them.
void PrefixCache::release(std::vector<std::int32_t>& pages, std::int64_t written) {
  gains_++;
  for (; !pages.empty(); pages.pop_back()) {
    const std::int32_t page = pages.back();
    PTRT_CHECK(at(page).users > 0);
    at(page).users--;
    if (std::ssize(pages) * kPageTokens > written) {
      PTRT_CHECK(at(page).users == 0);
      forget(page);
    }
    if (at(page).users > 0) continue;
    if (at(page).name != nullptr)
      append_unused(page);
    else
      allocator_.give_back(page);
  }
}

void PrefixCache::forget(std::int32_t page) {
  const Name* name = at(page).name;
  if (name == nullptr) return;
  PTRT_CHECK(at(page).users == 0 && at(page).after == 0);
  if (name->before >= 0) at(static_cast<std::int32_t>(name->before)).after--;
  named_.erase(Name(*name));
  at(page).name = nullptr;
}

void PrefixCache::append_unused(std::int32_t page) {
  const auto head = static_cast<std::int32_t>(pages_.size() - 1);
  at(page).next = head;
  at(page).previous = at(head).previous;
  at(at(page).previous).next = page;
  at(head).previous = page;
  unused_count_++;
}

void PrefixCache::remove_unused(std::int32_t page) {
  at(at(page).previous).next = at(page).next;
  at(at(page).next).previous = at(page).previous;
  at(page).previous = at(page).next = -1;
  unused_count_--;
}

}  // namespace ptrt
