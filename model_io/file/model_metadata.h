// What the metadata of a model's files say, apart from the open files: one process may read them and hand
// them to another.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model_io/config/tensor_names.h"
#include "model_io/file/tensor_reader.h"

namespace ptrt {

struct TokenizerBlob {
  std::string kind;                 // "bytes", "sentencepiece", "huggingface"; "" when the file has none
  std::vector<std::uint8_t> model;  // tokenizer.model / tokenizer.json bytes
  std::string file;                 // it was read from; for messages
  std::string chat_template = {};   // Jinja; "" when the file has none
};

struct ModelMetadata {
  struct File {
    std::string path;
    std::uint64_t device = 0, inode = 0;  // tell whether another file took its place
  };
  struct Tensor {
    WeightRole role;
    StoredTensor stored;  // its descriptors are -1
  };

  std::string config;  // the attribute's text
  TokenizerBlob tokenizer;
  std::vector<File> files;               // the main one, then those that links led to
  std::vector<std::string> other_files;  // of datasets with data elsewhere
  std::vector<std::string> track_files;  // by track
  std::vector<Tensor> tensors;           // of all files that are there
};

// For a pipe between two processes of one program.
std::string to_bytes(const ModelMetadata& metadata);
// Throws bad_input that names `path` where they are no metadata.
ModelMetadata metadata_from_bytes(std::string_view bytes, const std::string& path);

}  // namespace ptrt
