// The content of one tensor of a model file, read in pieces in any order and by several threads at a time.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/int8.h"
#include "kernels/weight_source.h"
#include "model_io/config/tensor_names.h"
#include "model_io/file/crc32c.h"
#include "model_io/file/file_map.h"

namespace ptrt {

// One dataset as the metadata of its file has it.
struct StoredDataset {
  std::string file, name;  // the file it lies in; what messages call it
  std::size_t bytes = 0;
  std::optional<std::uint32_t> crc32c;  // as the file claims
  int descriptor = -1;                  // of the file, as long as it is open
  // Of its first byte in the file, where its bytes can be read there as they are.
  std::optional<std::uint64_t> offset;
};

// A tensor is the dataset of its elements and, where they are int8, the one of its scales; in panels it is
// one dataset in any case.
struct StoredTensor : StoredDataset {
  DType dtype = DType::float32;
  std::vector<std::int64_t> shape;  // of the tensor, whatever the layout
  std::optional<StoredDataset> scales;
  WeightLayout layout = WeightLayout::rows;
};

// A weight on its way into a backend, which tells afterwards what was taken.
class TensorContent : public WeightSource {
 public:
  virtual DType dtype() const = 0;
  // Of `count` rows from `first` on the elements [column, column + columns); int8: whole groups, the last
  // one as long as it is. What is read so is not in verify()'s account.
  virtual void read_columns(std::int64_t first, std::int64_t count, std::int64_t column, std::int64_t columns,
                            std::span<std::byte> out) = 0;
  virtual void read_scale_columns(std::int64_t first, std::int64_t count, std::int64_t column,
                                  std::int64_t columns, std::span<std::byte> out) = 0;
  // Once every row was read: its checksums in hexadecimal, for digests. Throws bad_input where they are not
  // the ones that the file claims.
  virtual std::string verify() const = 0;
  // What verify() gives where the content is as the file claims; empty where it claims nothing.
  virtual std::string claim() const = 0;
};

// Reads a dataset straight from its file, or hands on what was read before.
class DatasetReader {
 public:
  // Counts in `bytes_read` what it reads. `map` is of the file, and outlives this object.
  DatasetReader(const StoredDataset& stored, std::atomic<std::size_t>& bytes_read, FileMap& map);
  // `content` in this machine's byte order; `crc` of the bytes as the file has them.
  DatasetReader(const StoredDataset& stored, std::vector<std::byte> content, std::uint32_t crc);

  // The bytes from `at` on, as many as `out` takes. Throws bad_input where the file ends before them.
  void read(std::size_t at, std::span<std::byte> out);
  // `count` pieces of `width` bytes, the first at `at`, each `stride` bytes after the one before.
  void read_strided(std::size_t at, std::size_t width, std::size_t stride, std::size_t count,
                    std::span<std::byte> out);
  // The whole dataset mapped, by itself or within its whole file. Null where it does not begin at a multiple
  // of `alignment` bytes in the file, or of kMapAlignment; and where it cannot be mapped.
  std::shared_ptr<const std::byte> map_alone(std::size_t alignment);
  std::shared_ptr<const std::byte> map_with_file();
  // These bytes of the map have been used: takes them into the checksum.
  void account(std::size_t at, std::span<const std::byte> mapped);
  // Reads everything into a small buffer, for the checksum.
  void scan();
  // Of the whole, once each byte was read.
  std::uint32_t crc32c() const;
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
  std::uint32_t content_crc_ = 0;
};

// Reads a tensor, in whatever layout it is stored; RowsReader and PanelsReader know theirs.
class TensorReader : public TensorContent {
 public:
  // `content` and `scales` (int8 in rows alone) read the datasets of `stored`; all of them outlive this
  // object.
  TensorReader(const StoredTensor& stored, std::unique_ptr<DatasetReader> content,
               std::unique_ptr<DatasetReader> scales);

  DType dtype() const override { return stored_.dtype; }
  std::string verify() const override;
  std::string claim() const override;
  // Throws bad_input on a scale that is negative or not finite, and where columns cut a group.
  void read_scale_columns(std::int64_t first, std::int64_t count, std::int64_t column, std::int64_t columns,
                          std::span<std::byte> out) final;

  DatasetReader& content() { return *content_; }
  DatasetReader* scales() { return scales_.get(); }  // null but for int8 in rows

 protected:
  virtual void read_scale_groups(std::int64_t first, std::int64_t count, std::size_t group,
                                 std::size_t groups, std::span<std::byte> out) = 0;
  // Throws bad_input where one is negative or not finite; the first is that of group `group` of row `first`.
  void check_scales(std::int64_t first, std::size_t group, std::size_t groups,
                    std::span<const std::byte> scales) const;
  std::int64_t columns() const { return stored_.shape.back(); }
  std::size_t row_bytes() const { return static_cast<std::size_t>(columns()) * size_of(stored_.dtype); }
  std::size_t row_groups() const { return static_cast<std::size_t>(int8_groups(columns())); }

  const StoredTensor& stored_;
  std::unique_ptr<DatasetReader> content_, scales_;
};

class RowsReader final : public TensorReader {
 public:
  using TensorReader::TensorReader;

  void read(std::int64_t first, std::span<std::byte> rows) override;
  // Throws bad_input on a scale that is negative or not finite.
  void read_scales(std::int64_t first, std::span<std::byte> scales) override;
  void read_columns(std::int64_t first, std::int64_t count, std::int64_t column, std::int64_t columns,
                    std::span<std::byte> out) override;
  std::optional<WeightImage> image(WeightLayout layout) override;  // of floating types
  void check_image(std::int64_t first, std::int64_t rows) override;

 private:
  void read_scale_groups(std::int64_t first, std::int64_t count, std::size_t group, std::size_t groups,
                         std::span<std::byte> out) override;

  std::shared_ptr<const std::byte> image_;
};

}  // namespace ptrt
