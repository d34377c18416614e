#include "model_io/file/tensor_reader.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/base/progress.h"
#include "kernels/base/scalar_types.h"
#include "kernels/float8.h"

namespace ptrt {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{128} << 10;  // read, then checksummed while in the cache

}  // namespace

DatasetReader::DatasetReader(const StoredDataset& stored, std::atomic<std::size_t>& bytes_read, FileMap& map)
    : stored_(stored), bytes_read_(&bytes_read), map_(&map), pieces_(stored.bytes) {
  PTRT_CHECK(stored.offset && stored.descriptor >= 0);
}

DatasetReader::DatasetReader(const StoredDataset& stored, std::vector<std::byte> content, std::uint32_t crc)
    : stored_(stored), content_(std::move(content)), pieces_(stored.bytes), content_crc_(crc) {
  PTRT_CHECK(content_.size() == stored.bytes);
}

void DatasetReader::read(std::size_t at, std::span<std::byte> out) {
  if (bytes_read_ == nullptr) return read_uncounted(at, out);
  PTRT_CHECK(at + out.size() <= stored_.bytes);
  for (std::size_t done = 0; done < out.size(); done += kPieceBytes) {
    const auto piece = out.subspan(done, std::min(kPieceBytes, out.size() - done));
    read_file(at + done, piece);
    pieces_.add(at + done, piece);
  }
  *bytes_read_ += out.size();
}

void DatasetReader::read_uncounted(std::size_t at, std::span<std::byte> out) {
  PTRT_CHECK(at + out.size() <= stored_.bytes);
  if (bytes_read_ == nullptr) {
    std::copy_n(content_.begin() + static_cast<std::ptrdiff_t>(at), out.size(), out.begin());
    return;
  }
  read_file(at, out);
  *bytes_read_ += out.size();
}

void DatasetReader::read_file(std::size_t at, std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t got =
        ::pread(stored_.descriptor, out.data(), out.size(), static_cast<off_t>(*stored_.offset + at));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      throw_bad_input("{}: cannot read dataset {}: {}", stored_.file, stored_.name, std::strerror(errno));
    if (got == 0)
      throw_bad_input("{}: truncated: it ends before byte {} of the {} of dataset {}", stored_.file, at,
                      stored_.bytes, stored_.name);
    note_progress();
    at += static_cast<std::size_t>(got);
    out = out.subspan(static_cast<std::size_t>(got));
  }
}

// Long pieces are read by themselves, short ones with what lies between them.
void DatasetReader::read_strided(std::size_t at, std::size_t width, std::size_t stride, std::size_t count,
                                 std::span<std::byte> out) {
  constexpr std::size_t kLong = 4096;
  PTRT_CHECK(count >= 1 && width <= stride && out.size() == count * width);
  PTRT_CHECK(at + (count - 1) * stride + width <= stored_.bytes);
  if (bytes_read_ == nullptr) {
    for (std::size_t i = 0; i < count; ++i) std::memcpy(&out[i * width], &content_[at + i * stride], width);
    return;
  }
  std::call_once(advance_made_, [&] { advance_.emplace(stride); });
  PTRT_CHECK(advance_->bytes() == stride);
  std::uint32_t crc = 0;
  const std::size_t together = width >= kLong ? 1 : std::max<std::size_t>(1, kPieceBytes / stride);
  const std::size_t most = (std::min(together, count) - 1) * stride + width;
  const auto buffer = together > 1 ? std::make_unique_for_overwrite<std::byte[]>(most) : nullptr;
  for (std::size_t done = 0; done < count; done += together) {
    const std::size_t n = std::min(together, count - done), bytes = (n - 1) * stride + width;
    const std::span<std::byte> pieces = out.subspan(done * width, n * width);
    read_file(at + done * stride, buffer ? std::span(buffer.get(), bytes) : pieces);
    *bytes_read_ += bytes;
    for (std::size_t i = 0; i < n; ++i) {
      const std::span<std::byte> piece(pieces.data() + i * width, width);
      if (buffer) std::memcpy(piece.data(), &buffer[i * stride], width);
      crc = (*advance_)(crc) ^ ptrt::crc32c(0, piece);
    }
  }
  pieces_.add_contribution(crc, count * width, at + (count - 1) * stride + width);
}

std::shared_ptr<const std::byte> DatasetReader::map_alone(std::size_t alignment) {
  if (map_ == nullptr || *stored_.offset % alignment != 0) return nullptr;
  return map_->part(*stored_.offset, stored_.bytes, stored_.name);
}

std::shared_ptr<const std::byte> DatasetReader::map_with_file() {
  if (map_ == nullptr || *stored_.offset % kMapAlignment != 0) return nullptr;
  return map_->bytes(*stored_.offset, stored_.bytes, stored_.name);
}

void DatasetReader::count(std::size_t at, std::span<const std::byte> bytes) {
  if (bytes_read_ != nullptr) pieces_.add(at, bytes);
}

void DatasetReader::add_checksum(std::size_t at, std::span<const std::byte> mapped) {
  pieces_.add(at, mapped);
  note_progress();
  *bytes_read_ += mapped.size();
}

void DatasetReader::scan(const std::function<void(std::size_t, std::span<const std::byte>)>& see) {
  std::vector<std::byte> buffer(std::min(kPieceBytes, stored_.bytes));
  for (std::size_t at = 0; at < stored_.bytes; at += buffer.size()) {
    const auto piece = std::span(buffer).first(std::min(buffer.size(), stored_.bytes - at));
    read(at, piece);
    see(at, piece);
  }
}

std::uint32_t DatasetReader::crc32c() const {
  if (bytes_read_ == nullptr) return content_crc_;
  PTRT_CHECK(pieces_.complete());
  return pieces_.value();
}

ReadContent DatasetReader::content() const {
  if (bytes_read_ == nullptr) return {stored_.bytes, stored_.bytes, content_crc_, stored_.crc32c, true};
  return {stored_.bytes, pieces_.added(), pieces_.value(), stored_.crc32c, false};
}

std::string DatasetReader::mismatch() const {
  if (!stored_.crc32c || *stored_.crc32c == crc32c()) return "";
  return fmt::format("expected crc32c {:08x}, found {:08x}", *stored_.crc32c, crc32c());
}

void DatasetReader::verify() const {
  if (const std::string what = mismatch(); !what.empty())
    throw_bad_input("{}: dataset {}: {}: the data is damaged", stored_.file, stored_.name, what);
}

TensorReader::TensorReader(const StoredTensor& stored, std::unique_ptr<DatasetReader> content,
                           std::unique_ptr<DatasetReader> scales)
    : stored_(stored), content_(std::move(content)), scales_(std::move(scales)) {
  PTRT_CHECK(stored.has_scales_apart() == (scales_ != nullptr));
}

void TensorReader::read_scale_columns(std::int64_t first, std::int64_t count, std::int64_t column,
                                      std::int64_t columns, std::span<std::byte> out) {
  PTRT_CHECK(stored_.dtype == DType::int8);
  const bool to_the_end = column + columns == this->columns();  // where the last group may be shorter
  if (column % kInt8Group != 0 || (columns % kInt8Group != 0 && !to_the_end))
    throw_bad_input(
        "{}: dataset {}: columns {} to {} do not lie in whole groups of {}: with int8 weights fewer ranks "
        "must share a track",
        stored_.file, stored_.name, column, column + columns, kInt8Group);
  const auto group = static_cast<std::size_t>(column / kInt8Group);
  const auto groups = static_cast<std::size_t>(int8_groups(columns));
  read_scale_groups(first, count, group, groups, out);
  check_scales(first, group, groups, out);
}

void TensorReader::check_scales(std::int64_t first, std::size_t group, std::size_t groups,
                                std::span<const std::byte> scales) const {
  const StoredDataset& holder = stored_.scales ? *stored_.scales : stored_;
  for (std::size_t i = 0; i < scales.size() / sizeof(std::uint16_t); ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, scales.data() + i * sizeof(bits), sizeof(bits));
    if (bits < kFirstBadScale) continue;
    throw_bad_input("{}: dataset {}: row {}, group {}: expected a finite scale of 0 or more, found {}",
                    holder.file, holder.name, static_cast<std::size_t>(first) + i / groups,
                    group + i % groups, from_float16(bits));
  }
}

void TensorReader::verify() const {
  content_->verify();
  if (scales_ != nullptr) scales_->verify();
}

std::vector<ReadContent> TensorReader::contents() const {
  std::vector<ReadContent> all{content_->content()};
  if (scales_ != nullptr) all.push_back(scales_->content());
  return all;
}

void RowsReader::read(std::int64_t first, std::span<std::byte> rows) {
  content_->read(static_cast<std::size_t>(first) * row_bytes(), rows);
}

void RowsReader::read_columns(std::int64_t first, std::int64_t count, std::int64_t column,
                              std::int64_t columns, std::span<std::byte> out) {
  const std::size_t element = size_of(stored_.dtype);
  content_->read_strided(
      static_cast<std::size_t>(first) * row_bytes() + static_cast<std::size_t>(column) * element,
      static_cast<std::size_t>(columns) * element, row_bytes(), static_cast<std::size_t>(count), out);
}

void RowsReader::read_scales(std::int64_t first, std::span<std::byte> scales) {
  PTRT_CHECK(scales_ != nullptr);
  scales_->read(static_cast<std::size_t>(first) * row_groups() * sizeof(std::uint16_t), scales);
  check_scales(first, 0, row_groups(), scales);
}

void RowsReader::read_scale_groups(std::int64_t first, std::int64_t count, std::size_t group,
                                   std::size_t groups, std::span<std::byte> out) {
  constexpr std::size_t kBytes = sizeof(std::uint16_t);
  scales_->read_strided((static_cast<std::size_t>(first) * row_groups() + group) * kBytes, groups * kBytes,
                        row_groups() * kBytes, static_cast<std::size_t>(count), out);
}

std::optional<MappedWeight> RowsReader::try_map(WeightLayout layout) {
  if (layout != WeightLayout::rows || scales_ != nullptr) return std::nullopt;
  mapped_ = content_->map_alone(size_of(stored_.dtype));
  if (mapped_ == nullptr) return std::nullopt;
  return MappedWeight{mapped_, stored_.bytes};
}

void RowsReader::check_mapped(std::int64_t first, std::int64_t rows) {
  const std::size_t at = static_cast<std::size_t>(first) * row_bytes();
  content_->add_checksum(at, {mapped_.get() + at, static_cast<std::size_t>(rows) * row_bytes()});
}

void check_float8_scales(const StoredDataset& holder, std::int64_t first, std::span<const float> scales) {
  for (std::size_t i = 0; i < scales.size(); ++i)
    if (!is_float8_scale(scales[i]))
      throw_bad_input("{}: dataset {}: row {}: expected a scale from 0 to 2^119, found {}", holder.file,
                      holder.name, static_cast<std::size_t>(first) + i, scales[i]);
}

void Float8Reader::check_codes(std::int64_t first, std::int64_t column, std::int64_t columns,
                               std::span<const std::byte> codes) const {
  const auto bad = [](std::byte code) { return is_float8_nan(static_cast<std::uint8_t>(code)); };
  bool any = false;
  for (const std::byte code : codes) any |= bad(code);
  if (!any) return;
  const std::int64_t at = std::ranges::find_if(codes, bad) - codes.begin();
  throw_bad_input("{}: dataset {}: element {} of row {} is NaN: float8 weights must be numbers", stored_.file,
                  stored_.name, column + at % columns, first + at / columns);
}

void Float8Reader::read(std::int64_t first, std::span<std::byte> rows) {
  RowsReader::read(first, rows);
  check_codes(first, 0, columns(), rows);
}

void Float8Reader::read_columns(std::int64_t first, std::int64_t count, std::int64_t column,
                                std::int64_t columns, std::span<std::byte> out) {
  RowsReader::read_columns(first, count, column, columns, out);
  check_codes(first, column, columns, out);
}

void Float8Reader::read_scales(std::int64_t first, std::span<std::byte> scales) {
  scales_->read(static_cast<std::size_t>(first) * sizeof(float), scales);
  std::vector<float> values(scales.size() / sizeof(float));
  std::memcpy(values.data(), scales.data(), scales.size());
  check_float8_scales(*stored_.scales, first, values);
}

void Float8Reader::read_scale_columns(std::int64_t first, std::int64_t count, std::int64_t column,
                                      std::int64_t, std::span<std::byte> out) {
  PTRT_CHECK(out.size() == static_cast<std::size_t>(count) * sizeof(float));
  const std::size_t at = static_cast<std::size_t>(first) * sizeof(float);
  if (column == 0)
    read_scales(first, out);
  else
    scales_->read_uncounted(at, out);
  const std::uint32_t crc = crc32c_before(crc32c(0, out), stored_.scales->bytes - (at + out.size()));
  const std::lock_guard lock(mutex_);
  shared_scales_ = shared_scales_.value_or(0) ^ crc;
}

std::vector<ReadContent> Float8Reader::contents() const {
  std::vector<ReadContent> all = TensorReader::contents();
  if (shared_scales_) all.back().shared[0] = *shared_scales_;
  return all;
}

}  // namespace ptrt
