// Numbers, text and arrays of numbers as the bytes of a message between ranks of one program: in the order of
// memory, arrays and text after their length.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kernels/base/error.h"

namespace ptrt {

template <typename T>
requires std::is_arithmetic_v<T>
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
template <typename T>
requires std::is_arithmetic_v<T>
void append_bytes(std::string& message, const std::vector<T>& values) {
  append_bytes(message,
               std::string_view(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)));
}

// Takes what was appended, in the same order. The bytes must outlive it.
class ByteReader {
 public:
  explicit ByteReader(std::string_view bytes) : left_(bytes) {}

  bool empty() const { return left_.empty(); }
  template <typename T>
  requires std::is_arithmetic_v<T>
  void take(T& value) { std::memcpy(&value, cut(sizeof value).data(), sizeof value); }
  void take(std::string& text) { text = take_text(); }
  template <typename T>
  requires std::is_arithmetic_v<T>
  void take(std::vector<T>& values) {
    const std::string_view bytes = take_text();
    values.resize(bytes.size() / sizeof(T));
    if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
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
