// A model file opened for reading: config, tokenizer and checked access to its tensors. One thread
// at a time may use it; the readers that open() gives allow several.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model_io/config/model_config.h"
#include "model_io/config/tensor_names.h"
#include "model_io/file/model_metadata.h"
#include "model_io/file/tensor_reader.h"

namespace ptrt {

class ModelFile {
 public:
  // Opens the main file, checks format and version, parses the config. Opens no shard. Throws
  // bad_input. Links and datasets that take data from outside of the model's folder are refused where
  // they are met, unless `trust_links` (docs/MODEL_FILE.md, Links).
  // Where another process has read the metadata, `known`, the files are not asked for them again; then
  // bad_input too where another file has taken the place of one.
  explicit ModelFile(const std::string& path, bool trust_links = false, const ModelMetadata* known = nullptr);
  ~ModelFile();
  ModelFile(ModelFile&&) noexcept;

  const std::string& path() const;
  const ModelConfig& config() const;
  TokenizerBlob tokenizer() const;

  // Shape, type and checksums of one tensor from the file's metadata, checked against the spec:
  // missing (names it, or the shard file that is not there), misshapen or of a type that its role
  // does not have (expected and found), without its scales, truncated. Reads no data, but for the scales of float8:
  // one that is not allowed is named.
  StoredTensor stat(const TensorSpec& spec) const;
  // All that there is: of every track whose file is there. Calls `look` with each tensor. Throws like stat().
  ModelMetadata metadata(const std::function<void(const StoredTensor&)>& look = {}) const;
  // A reader of what stat() found; this object and `stored` outlive it. A dataset that is not one
  // run of this machine's elements in the file (chunked, compressed, big-endian) is read whole
  // here.
  std::unique_ptr<TensorReader> open(const StoredTensor& stored) const;

  // Bytes of tensor data read so far, and the files they may come from: the main one, then those that
  // links led to.
  std::size_t bytes_read() const;
  std::vector<std::string> files_opened() const;
  // File that holds a track: the main file, or the one that a link leads to; where that is missing, its
  // place beside the main file.
  std::string track_file(std::int64_t track) const;
  bool has_track_file(std::int64_t track) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ptrt
