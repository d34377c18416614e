// The content of one tensor of a model file, read in pieces in any order and by several threads at
// a time.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/int8.h"
#include "model_io/file/crc32c.h"
#include "model_io/file/file_map.h"
#include "model_io/file/verified_source.h"

namespace ptrt {

// One dataset, as the metadata of its file describes it.
struct StoredDataset {
  std::string file, name;  // the file it lies in; what messages call it
  std::size_t bytes = 0;
  std::optional<std::uint32_t> crc32c;  // recorded in the file
  int descriptor = -1;                  // of the file, as long as it is open
  // Of its first byte in the file; none where the file does not have its bytes as one run of this
  // machine's elements.
  std::optional<std::uint64_t> offset;
};

// A tensor is the dataset of its elements; an int8 tensor in rows, or a float8 one, has a second one, of its scales.
struct StoredTensor : StoredDataset {
  DType dtype = DType::float32;
  std::vector<std::int64_t> shape;  // of the tensor, whatever the layout
  std::optional<StoredDataset> scales;
  WeightLayout layout = WeightLayout::rows;
  DType widened = DType::float32;  // as in WeightSpec

  bool has_scales_apart() const { return size_of(dtype) == 1 && layout == WeightLayout::rows; }
};

// Reads a dataset straight from its file, or gives what was read before.
class DatasetReader {
 public:
  // Adds to `bytes_read` what it reads. `map` is of the file, and outlives this object.
  DatasetReader(const StoredDataset& stored, std::atomic<std::size_t>& bytes_read, FileMap& map);
  // `content` in this machine's byte order; `crc` of the bytes as the file has them.
  DatasetReader(const StoredDataset& stored, std::vector<std::byte> content, std::uint32_t crc);

  // The bytes from `at` on, as many as `out` takes. Throws bad_input where the file ends before
  // them.
  void read(std::size_t at, std::span<std::byte> out);
  // The same bytes, but they do not count.
  void read_uncounted(std::size_t at, std::span<std::byte> out);
  // `count` pieces of `width` bytes, the first at `at`, each `stride` bytes after the one before. All calls
  // for one dataset have the same stride.
  void read_strided(std::size_t at, std::size_t width, std::size_t stride, std::size_t count,
                    std::span<std::byte> out);
  // The whole dataset mapped: by itself, or within its whole file. Null where it cannot be mapped,
  // or does not begin at a multiple of `alignment` bytes in the file (within the file: of
  // kMapAlignment).
  std::shared_ptr<const std::byte> map_alone(std::size_t alignment);
  std::shared_ptr<const std::byte> map_with_file();
  // Bytes at `at` that were read uncounted count after all.
  void count(std::size_t at, std::span<const std::byte> bytes);
  // Adds bytes that are used from the map to the checksum.
  void add_checksum(std::size_t at, std::span<const std::byte> mapped);
  // Reads everything through a small buffer, for the checksum and for `see`, which gets each piece of whole
  // elements with its place in bytes.
  void scan(const std::function<void(std::size_t, std::span<const std::byte>)>& see);
  // Of the whole, once each byte was read.
  std::uint32_t crc32c() const;
  ReadContent content() const;
  // "expected crc32c ..., found ...", or "" where the checksum is the file's or the file has none.
  std::string mismatch() const;
  void verify() const;  // throws bad_input with the mismatch

 private:
  void read_file(std::size_t at, std::span<std::byte> out);

  const StoredDataset& stored_;
  std::atomic<std::size_t>* bytes_read_ = nullptr;  // null: all is in memory
  FileMap* map_ = nullptr;                          // null likewise
  std::vector<std::byte> content_;
  Crc32cOfPieces pieces_;
  std::once_flag advance_made_;
  std::optional<Crc32cAdvance> advance_;  // by the stride of read_strided()
  std::uint32_t content_crc_ = 0;
};

// Reads a tensor; RowsReader and PanelsReader (panels_reader.h) each know one layout, Float8Reader the type.
class TensorReader : public VerifiedSource {
 public:
  // `content` and `scales` (null where they are not apart) read the datasets of `stored`, which outlives this
  // object.
  TensorReader(const StoredTensor& stored, std::unique_ptr<DatasetReader> content,
               std::unique_ptr<DatasetReader> scales);

  DType dtype() const override { return stored_.dtype; }
  void verify() const override;
  std::vector<ReadContent> contents() const override;
  // Throws bad_input on a scale that the type does not allow, and where columns cut a group of int8.
  void read_scale_columns(std::int64_t first, std::int64_t count, std::int64_t column, std::int64_t columns,
                          std::span<std::byte> out) override;

  DatasetReader& content() { return *content_; }
  DatasetReader* scales() { return scales_.get(); }  // null where they are not apart

 protected:
  virtual void read_scale_groups(std::int64_t first, std::int64_t count, std::size_t group,
                                 std::size_t groups, std::span<std::byte> out) = 0;
  // int8: `scales` of `groups` groups a row, from group `group` of row `first` on. Throws bad_input
  // where one is negative or not finite.
  void check_scales(std::int64_t first, std::size_t group, std::size_t groups,
                    std::span<const std::byte> scales) const;
  std::int64_t columns() const { return stored_.shape.back(); }
  std::size_t row_bytes() const { return static_cast<std::size_t>(columns()) * size_of(stored_.dtype); }
  std::size_t row_groups() const { return static_cast<std::size_t>(int8_groups(columns())); }

  const StoredTensor& stored_;
  std::unique_ptr<DatasetReader> content_, scales_;
};

class RowsReader : public TensorReader {
 public:
  using TensorReader::TensorReader;

  void read(std::int64_t first, std::span<std::byte> rows) override;
  // Throws bad_input on a scale that is negative or not finite.
  void read_scales(std::int64_t first, std::span<std::byte> scales) override;
  void read_columns(std::int64_t first, std::int64_t count, std::int64_t column, std::int64_t columns,
                    std::span<std::byte> out) override;
  std::optional<MappedWeight> try_map(WeightLayout layout) override;  // of floating types
  void check_mapped(std::int64_t first, std::int64_t rows) override;

 private:
  void read_scale_groups(std::int64_t first, std::int64_t count, std::size_t group, std::size_t groups,
                         std::span<std::byte> out) override;

  std::shared_ptr<const std::byte> mapped_;
};

// Throws bad_input where one of these scales of a float8 tensor, the first of row `first`, is not as float8.h says.
void check_float8_scales(const StoredDataset& holder, std::int64_t first, std::span<const float> scales);

// float8 in rows. A scale is that of a whole row, so parts of a row all need it: it counts with the row's first
// column, and all who read it must have read the same.
class Float8Reader final : public RowsReader {
 public:
  using RowsReader::RowsReader;

  // Throws bad_input on a code that is NaN.
  void read(std::int64_t first, std::span<std::byte> rows) override;
  void read_columns(std::int64_t first, std::int64_t count, std::int64_t column, std::int64_t columns,
                    std::span<std::byte> out) override;
  void read_scales(std::int64_t first, std::span<std::byte> scales) override;
  void read_scale_columns(std::int64_t first, std::int64_t count, std::int64_t column, std::int64_t columns,
                          std::span<std::byte> out) override;
  std::vector<ReadContent> contents() const override;

 private:
  // `codes`: of rows from `first` on, `columns` of each from `column` on.
  void check_codes(std::int64_t first, std::int64_t column, std::int64_t columns,
                   std::span<const std::byte> codes) const;

  std::mutex mutex_;                            // guards:
  std::optional<std::uint32_t> shared_scales_;  // checksum of those that were read for cut rows
};

}  // namespace ptrt
