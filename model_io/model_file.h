// A model file opened for reading: config, tokenizer and checked access to its tensors. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model_io/model_config.h"
#include "model_io/tensor_names.h"

namespace ptrt {

struct StoredTensor {
  DType dtype = DType::float32;
  std::vector<std::int64_t> shape;
  std::optional<std::uint32_t> crc32c;  // as the file claims
  std::size_t bytes = 0;
};

struct TokenizerBlob {
  std::string kind;                 // "bytes", "sentencepiece", "huggingface"; "" when the file has none
  std::vector<std::uint8_t> model;  // tokenizer.model / tokenizer.json bytes
  std::string file;                 // it was read from; for messages
};

class ModelFile {
 public:
  // Opens the main file, checks format and version, parses the config. Opens no shard. Throws bad_input.
  explicit ModelFile(const std::string& path);
  ~ModelFile();
  ModelFile(ModelFile&&) noexcept;

  const std::string& path() const;
  const ModelConfig& config() const;
  TokenizerBlob tokenizer() const;

  // Shape, type and checksum of one tensor from the file's metadata, checked against the spec: missing (names
  // it, or the shard file that is not there), misshapen or of another type (expected and found), truncated.
  // Reads no data.
  StoredTensor stat(const TensorSpec& spec) const;
  // Reads the whole tensor into `out` (exactly stat().bytes) and checks its crc32c where the file has one.
  // Returns the crc32c of the bytes as they lie in the file; `out` gets them in this machine's byte order.
  std::uint32_t read(const TensorSpec& spec, const StoredTensor& stored, std::span<std::byte> out) const;
  // The crc32c of the tensor's bytes, read piece by piece and compared with nothing.
  std::uint32_t content_crc32c(const TensorSpec& spec, const StoredTensor& stored) const;

  // Bytes of tensor data read through this object so far, and files it opened (the main one, then shards).
  std::size_t bytes_read() const;
  std::vector<std::string> files_opened() const;
  // File that holds a track: the main file's path or the external link's target, resolved.
  std::string track_file(std::int64_t track) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ptrt
