// Sequences whose pages lie scattered in a KV pool of a backend.
#pragma once

#include <numeric>

#include "ops/op_fixture.h"

namespace ptrt::testing {

// Elements are put and read on the host; store() and load() move the pool to the backend and back. A place
// that holds no token is NaN or infinite.
class KvPages {
 public:
  static constexpr std::int64_t kLayers = 2, kLayer = 1;

  KvPages(Backend& backend, const AttentionShape& shape, std::int64_t tracks, std::int64_t sequences,
          std::int64_t context, DType dtype, Random& order)
      : backend_(backend), sequences_(sequences), stride_((context + kPageTokens - 1) / kPageTokens) {
    std::vector<std::int32_t> pages(static_cast<std::size_t>(stride_ * sequences + 3));
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), order.engine());
    page_table_.assign(pages.begin(), pages.end() - 3);
    pool_ = {nullptr,        dtype,         tracks, kLayers, static_cast<std::int64_t>(pages.size()),
             shape.kv_heads, shape.head_dim};
    memory_ = allocate_exactly(backend, pool_.bytes());
    pool_.data = memory_.get();
    host_.resize(pool_.bytes());
    for (std::int64_t i = 0; i < pool_.elements(); ++i) put(i, i % 2 == 0 ? NAN : INFINITY);
    store();
  }
  KvPages(const KvPages&) = delete;
  KvPages& operator=(const KvPages&) = delete;

  const KvPool& pool() const { return pool_; }
  std::int64_t sequences() const { return sequences_; }
  std::int64_t context() const { return stride_ * kPageTokens; }  // tokens that a sequence has pages for
  StepRows rows(std::span<const std::int32_t> positions, std::span<const std::int32_t> slots) const {
    return {positions, slots, page_table_, stride_};
  }
  void store() { backend_.write(host_, memory_.get()); }
  void load() { backend_.read_back(memory_.get(), host_); }

  // Random keys in [-3, 3] and values in [-1, 1] for sequences of these lengths.
  void fill(const std::vector<std::int32_t>& lengths, Random& random) {
    for (std::int64_t t = 0; t < pool_.tracks; ++t)
      for (std::int64_t slot = 0; slot < std::ssize(lengths); ++slot)
        for (std::int64_t p = 0; p < lengths[static_cast<std::size_t>(slot)]; ++p)
          for (std::int64_t h = 0; h < pool_.kv_heads; ++h)
            for (std::int64_t j = 0; j < pool_.head_dim; ++j) {
              put(key_at(t, slot, p, h, j), random.uniform(-3, 3));
              put(value_at(t, slot, p, h, j), random.uniform());
            }
    store();
  }
  // Makes a token's key and value NaN, as a model that went out of range would.
  void poison(std::int64_t slot, std::int64_t position) {
    for (std::int64_t t = 0; t < pool_.tracks; ++t)
      for (std::int64_t h = 0; h < pool_.kv_heads; ++h)
        for (std::int64_t j = 0; j < pool_.head_dim; ++j) {
          put(key_at(t, slot, position, h, j), NAN);
          put(value_at(t, slot, position, h, j), NAN);
        }
    store();
  }
  // As stored, after rounding to the pool's type.
  float key(std::int64_t t, std::int64_t slot, std::int64_t position, std::int64_t head,
            std::int64_t j) const {
    return get(key_at(t, slot, position, head, j));
  }
  float value(std::int64_t t, std::int64_t slot, std::int64_t position, std::int64_t head,
              std::int64_t j) const {
    return get(value_at(t, slot, position, head, j));
  }
  // Elements of the pool that hold something of a token.
  std::int64_t finite_elements() const {
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < pool_.elements(); ++i) count += std::isfinite(get(i)) ? 1 : 0;
    return count;
  }

 private:
  // Elements are [page][track][layer][keys, values][head] and then, on a device, [16][head_dim]. On the host:
  // in float32, keys [head_dim][16] and values [16][head_dim]; in bfloat16, keys [head_dim / 2][16][2], the
  // last of an odd head_dim as [16] at the end, and values [8][head_dim][2].
  std::int64_t head_at(std::int64_t t, std::int64_t slot, std::int64_t position, std::int64_t part,
                       std::int64_t head) const {
    const std::int64_t page = page_table_[static_cast<std::size_t>(slot * stride_ + position / 16)];
    const std::int64_t layer = (page * pool_.tracks + t) * kLayers + kLayer;
    return ((layer * 2 + part) * pool_.kv_heads + head) * 16 * pool_.head_dim;
  }
  std::int64_t key_at(std::int64_t t, std::int64_t slot, std::int64_t position, std::int64_t head,
                      std::int64_t j) const {
    const std::int64_t first = head_at(t, slot, position, 0, head), place = position % 16;
    if (on_device_) return first + place * pool_.head_dim + j;
    const bool pairs = pool_.dtype == DType::bfloat16 && j < pool_.head_dim / 2 * 2;
    return first + (pairs ? j / 2 * 32 + place * 2 + j % 2 : j * 16 + place);
  }
  std::int64_t value_at(std::int64_t t, std::int64_t slot, std::int64_t position, std::int64_t head,
                        std::int64_t j) const {
    const std::int64_t first = head_at(t, slot, position, 1, head), place = position % 16;
    if (on_device_ || pool_.dtype == DType::float32) return first + place * pool_.head_dim + j;
    return first + place / 2 * 2 * pool_.head_dim + 2 * j + place % 2;
  }
  void put(std::int64_t element, float value) {
    if (pool_.dtype == DType::float32) {
      reinterpret_cast<float*>(host_.data())[element] = value;
      return;
    }
    reinterpret_cast<std::uint16_t*>(host_.data())[element] =
        pool_.dtype == DType::float16 ? to_float16(value) : to_bfloat16(value);
  }
  float get(std::int64_t element) const {
    if (pool_.dtype == DType::float32) return reinterpret_cast<const float*>(host_.data())[element];
    const std::uint16_t bits = reinterpret_cast<const std::uint16_t*>(host_.data())[element];
    return pool_.dtype == DType::float16 ? from_float16(bits) : from_bfloat16(bits);
  }

  Backend& backend_;
  bool on_device_ = backend_.device_groups() != nullptr;
  std::int64_t sequences_, stride_;
  std::vector<std::int32_t> page_table_;
  KvPool pool_;
  std::shared_ptr<std::byte[]> memory_;
  std::vector<std::byte> host_;
};

}  // namespace ptrt::testing
