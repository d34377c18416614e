// Writes a model file tensor by tensor, each in pieces, so that the model need not fit into memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model_io/config/model_config.h"
#include "model_io/config/tensor_names.h"
#include "model_io/file/model_file.h"

namespace ptrt {

// The names of all files that a ModelWriter for that path writes, the main one first.
std::vector<std::string> files_written(const std::string& path, const ModelConfig& config, bool split);

class ModelWriter {
 public:
  // Gives the elements first, first + 1, ... of a tensor in C order, as many as fit `bytes`: whole
  // rows. Called in order.
  using Fill = std::function<void(std::int64_t first, std::span<std::byte> bytes)>;
  // One piece of a matrix with scales: whole rows of elements, and their scales (WeightSource::read_scales).
  struct ScaledPiece {
    std::span<const std::byte> elements, scales;
  };
  // Gives rows [first, first + rows) of a matrix, valid until the next call. Called in order.
  using FillScaled = std::function<ScaledPiece(std::int64_t first, std::int64_t rows)>;

  // The files have new temporary names beside their own until commit(). `split` writes each
  // track to its own file `<stem>.trackTT.h5` in that folder; the main file has external links with
  // relative names, so that the folder can move. Datasets of at least `alignment` bytes begin at
  // multiples of it. Throws bad_input when `path` cannot be written, or is no regular file.
  ModelWriter(const std::string& path, const ModelConfig& config, bool split, std::size_t alignment = 1);
  ~ModelWriter();  // removes what was written unless it was committed

  // One tensor of the config, with its crc32c; a table that a backend may map, if it is aligned.
  // Throws failure, e.g. on a full disk.
  void write(const TensorSpec& spec, DType dtype, const Fill& fill);
  // The same for a matrix as int8 or float8, with its scales.
  void write_scaled(const TensorSpec& spec, DType dtype, const FillScaled& fill);
  // The same for a tensor in panels; the fill gives whole ones, and `first` counts panels.
  void write_panels(const TensorSpec& spec, DType dtype, const Fill& fill);
  void write_tokenizer(const TokenizerBlob& blob);
  // Everything is on disk and appears under its name, the main file last. Throws when a tensor was
  // not written.
  void commit();

  std::size_t bytes_written() const;       // of tensor data
  std::vector<std::string> files() const;  // final names, the main one first

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ptrt
