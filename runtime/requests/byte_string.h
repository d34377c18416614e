// Numbers, text and arrays as the bytes of a message between ranks of one program: in the order of memory, arrays
// and text after their length.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kernels/base/error.h"

namespace ptrt {

// A number, or a struct of numbers without padding.
template <typename T>
concept PlainValue = std::is_arithmetic_v<T> ||
    (std::is_class_v<T>&& std::is_trivially_copyable_v<T> && !std::is_convertible_v<T, std::string_view>);

template <PlainValue T>
void append_bytes(std::string& message, T value) {
  message.append(reinterpret_cast<const char*>(&value), sizeof value);
}
inline void append_bytes(std::string& message, std::string_view text) {
  append_bytes(message, std::uint64_t{text.size()});
  message += text;
}
inline void append_bytes(std::string& message, const std::string& text) {
  append_bytes(message, std::string_view(text));
}
template <PlainValue T>
void append_bytes(std::string& message, const std::vector<T>& values) {
  append_bytes(message,
               std::string_view(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)));
}
template <typename T>
void append_bytes(std::string& message, const std::vector<T>& items) {
  append_bytes(message, std::uint64_t{items.size()});
  for (const T& item : items) append_bytes(message, item);
}

// Takes what was appended, in the same order. The bytes must outlive it.
class ByteReader {
 public:
  explicit ByteReader(std::string_view bytes) : left_(bytes) {}

  bool empty() const { return left_.empty(); }
  template <PlainValue T>
  void take(T& value) {
    std::memcpy(&value, cut(sizeof value).data(), sizeof value);
  }
  void take(std::string& text) { text = take_text(); }
  template <PlainValue T>
  void take(std::vector<T>& values) {
    const std::string_view bytes = take_text();
    values.resize(bytes.size() / sizeof(T));
    if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  }
  template <typename T>
  void take(std::vector<T>& items) {
    std::uint64_t count = 0;
    take(count);
    for (; count > 0; count--) take(items.emplace_back());
  }

 private:
  std::string_view take_text() {
    std::uint64_t size = 0;
    take(size);
    return cut(size);
  }
  std::string_view cut(std::uint64_t size) {
    PTRT_CHECK(size <= left_.size());
    const std::string_view part = left_.substr(0, size);
    left_.remove_prefix(size);
    return part;
  }

  std::string_view left_;
};

}  // namespace ptrt
