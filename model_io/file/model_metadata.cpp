#include "model_io/file/model_metadata.h"

#include <concepts>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

// Numbers as this machine has them, what varies in length after its length, members in the order of their struct:
// both ends are one program on one host. One list of members serves both directions.

class ByteWriter {
 public:
  template <typename T>
  requires std::is_arithmetic_v<T> || std::is_enum_v<T>
  void operator()(const T& value) { bytes_.append(reinterpret_cast<const char*>(&value), sizeof value); }
  void operator()(const std::string& text) {
    (*this)(text.size());
    bytes_ += text;
  }
  template <typename T>
  void operator()(const std::vector<T>& values) {
    (*this)(values.size());
    for (const T& value : values) (*this)(value);
  }
  void operator()(const std::vector<std::uint8_t>& values) {
    (*this)(values.size());
    bytes_.append(reinterpret_cast<const char*>(values.data()), values.size());
  }
  template <typename T>
  void operator()(const std::optional<T>& value) {
    (*this)(static_cast<std::uint8_t>(value.has_value()));
    if (value) (*this)(*value);
  }
  template <typename T>
  void operator()(const T& record) {
    members(*this, record);
  }

  std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

class ByteReader {
 public:
  struct Damage {};

  explicit ByteReader(std::string_view bytes) : left_(bytes) {}

  template <typename T>
  requires std::is_arithmetic_v<T> || std::is_enum_v<T>
  void operator()(T& value) { std::memcpy(&value, take(sizeof value).data(), sizeof value); }
  void operator()(std::string& text) { text = take(length()); }
  template <typename T>
  void operator()(std::vector<T>& values) {
    for (std::size_t left = length(); left > 0; left--) (*this)(values.emplace_back());
  }
  void operator()(std::vector<std::uint8_t>& values) {
    const std::string_view bytes = take(length());
    values.assign(bytes.begin(), bytes.end());
  }
  template <typename T>
  void operator()(std::optional<T>& value) {
    std::uint8_t there = 0;
    (*this)(there);
    if (there > 1) throw Damage();
    if (there == 1) (*this)(value.emplace());
  }
  template <typename T>
  void operator()(T& record) {
    members(*this, record);
  }

  bool at_end() const { return left_.empty(); }

 private:
  // Of a text or a list, whose elements take a byte each at least.
  std::size_t length() {
    std::size_t count = 0;
    (*this)(count);
    if (count > left_.size()) throw Damage();
    return count;
  }
  std::string_view take(std::size_t count) {
    if (count > left_.size()) throw Damage();
    const std::string_view bytes = left_.substr(0, count);
    left_.remove_prefix(count);
    return bytes;
  }

  std::string_view left_;
};

template <typename T, typename Record>
concept Of = std::same_as<std::remove_const_t<T>, Record>;

// Descriptors stay behind.
void members(auto& io, Of<StoredDataset> auto& d) {
  io(d.file), io(d.name), io(d.bytes), io(d.crc32c), io(d.offset);
}
void members(auto& io, Of<StoredTensor> auto& t) {
  io(t.file), io(t.name), io(t.bytes), io(t.crc32c), io(t.offset);
  io(t.dtype), io(t.shape), io(t.scales), io(t.layout), io(t.widened);
}
void members(auto& io, Of<ModelMetadata::Tensor> auto& t) {
  io(t.role), io(t.stored);
}
void members(auto& io, Of<ModelMetadata::File> auto& f) {
  io(f.path), io(f.device), io(f.inode);
}
void members(auto& io, Of<TokenizerBlob> auto& t) {
  io(t.kind), io(t.model), io(t.file), io(t.chat_template);
}
void members(auto& io, Of<ModelMetadata> auto& m) {
  io(m.config), io(m.tokenizer), io(m.files), io(m.other_files), io(m.track_files), io(m.tensors);
}

}  // namespace

std::string to_bytes(const ModelMetadata& metadata) {
  ByteWriter writer;
  writer(metadata);
  return writer.take();
}

ModelMetadata metadata_from_bytes(std::string_view bytes, const std::string& path) {
  try {
    ModelMetadata metadata;
    ByteReader reader(bytes);
    reader(metadata);
    if (reader.at_end()) return metadata;
  } catch (const ByteReader::Damage&) {
  }
  throw_bad_input("{}: damaged HDF5 file: what was read of its metadata makes no sense", path);
}

}  // namespace ptrt
