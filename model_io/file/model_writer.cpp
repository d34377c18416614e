#include "model_io/file/model_writer.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/base/output_file.h"
#include "model_io/file/crc32c.h"
#include "model_io/file/panels_reader.h"
#include "model_io/hdf5/h5_file.h"

namespace ptrt {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kPieceBytes = std::size_t{4} << 20;

H5Type stored_type(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return H5Type::float32;
    case DType::float16:
      return H5Type::float16;
    case DType::bfloat16:
      return H5Type::uint16;
    case DType::int8:
      return H5Type::int8;
    case DType::float8_e4m3:
      return H5Type::uint8;
  }
  return H5Type::other;
}

// A file that gets its name only when it is complete. Where a symbolic link has that name, the file it
// points at is replaced.
class PendingFile {
 public:
  PendingFile(std::string name, std::size_t alignment)
      : name_(std::move(name)), place_(behind_links(name_)), temporary_(create_temporary_beside(place_)) {
    try {
      file_.emplace(H5File::create(temporary_, alignment));
    } catch (...) {
      remove_temporary(temporary_);
      throw;
    }
  }
  ~PendingFile() {
    if (temporary_.empty()) return;
    file_.reset();
    remove_temporary(temporary_);
  }
  PendingFile(PendingFile&& other) noexcept
      : name_(std::move(other.name_)),
        place_(std::move(other.place_)),
        temporary_(std::exchange(other.temporary_, {})),
        file_(std::move(other.file_)) {}
  PendingFile& operator=(PendingFile&&) = delete;

  const std::string& name() const { return name_; }
  H5File& file() { return *file_; }

  // All of them are closed before any gets its name: a full disk may show only then.
  void finish() { file_->close(); }
  void publish() {
    publish_temporary(temporary_, place_);
    temporary_.clear();
  }

 private:
  std::string name_, place_, temporary_;
  std::optional<H5File> file_;
};

std::string track_file_name(const std::string& path, std::int64_t track) {
  const fs::path main(path);
  return (main.parent_path() / fmt::format("{}.track{:02}.h5", main.stem().string(), track)).string();
}

// A dataset that is written from its first element to its last.
class DatasetWriter {
 public:
  DatasetWriter(H5File& file, const std::string& path, DType dtype, const std::vector<std::int64_t>& shape,
                std::optional<WeightLayout> layout = {})
      : dataset_(file.create_dataset(
            path, layout == WeightLayout::panels ? H5Type::uint8 : stored_type(dtype), shape)),
        dtype_(dtype),
        layout_(layout) {}

  void append(std::span<const std::byte> bytes) {
    crc_ = crc32c(crc_, bytes);
    dataset_.write(next_, bytes);
    next_ += static_cast<std::int64_t>(bytes.size() / dataset_.element_bytes());
  }

  void finish() {
    dataset_.write_attribute("crc32c", crc_);
    const bool panels = layout_ == WeightLayout::panels;
    if (layout_) dataset_.write_attribute("layout", std::string(panels ? kPanelLayoutName : kRowLayoutName));
    if (panels || dtype_ == DType::bfloat16 || dtype_ == DType::float8_e4m3)
      dataset_.write_attribute("dtype", std::string(to_string(dtype_)));
  }

 private:
  H5Dataset dataset_;
  DType dtype_;
  std::optional<WeightLayout> layout_;  // that the dataset names
  std::int64_t next_ = 0;
  std::uint32_t crc_ = 0;
};

std::set<std::string> all_paths(const ModelConfig& config) {
  std::set<std::string> paths;
  for (const TensorSpec& spec : shared_tensors(config)) paths.insert(spec.path);
  for (std::int64_t track = 0; track < config.tracks; ++track)
    for (const TensorSpec& spec : track_tensors(config, track)) paths.insert(spec.path);
  return paths;
}

}  // namespace

struct ModelWriter::Impl {
  Impl(const std::string& path, const ModelConfig& config, bool split, std::size_t file_alignment)
      : alignment(file_alignment), missing(all_paths(config)) {
    for (const std::string& name : files_written(path, config, split))
      if (std::error_code error; fs::exists(name, error) && !fs::is_regular_file(name, error))
        throw_bad_input("{}: cannot create: it is {}", name,
                        fs::is_directory(name, error) ? "a directory" : "no regular file");
    files.emplace_back(path, alignment);
    H5Object root = files[0].file().root();
    root.write_attribute("format", std::string("ptrt"));
    root.write_attribute("format_version", std::int64_t{1});
    root.write_attribute("config", to_json(config));
  }

  void add_track_file(std::int64_t track) {
    files.emplace_back(track_file_name(files[0].name(), track), alignment);
    const std::string group = track_group(track);
    files[0].file().create_external_link(group, fs::path(files.back().name()).filename().string(), group);
  }

  H5File& file_of(const std::string& path) {
    constexpr std::string_view kTracks = "/tracks/";
    if (files.size() == 1 || path.compare(0, kTracks.size(), kTracks) != 0) return files[0].file();
    return files[1 + std::stoul(path.substr(kTracks.size(), 2))].file();
  }

  // Appends pieces of `unit` bytes times what fits kPieceBytes; fill(number of the first unit,
  // where to).
  void write_pieces(DatasetWriter& dataset, std::size_t unit, std::int64_t units,
                    const ModelWriter::Fill& fill) {
    const auto step = std::max<std::int64_t>(1, static_cast<std::int64_t>(kPieceBytes / unit));
    for (std::int64_t first = 0; first < units; first += step) {
      const std::size_t bytes = static_cast<std::size_t>(std::min(step, units - first)) * unit;
      piece.resize(std::max(piece.size(), bytes));
      fill(first, std::span(piece).first(bytes));
      dataset.append(std::span(piece).first(bytes));
      bytes_written += bytes;
    }
    dataset.finish();
  }

  std::size_t alignment;
  std::vector<PendingFile> files;  // the main one; where split, one a track
  std::set<std::string> missing;   // tensors that are still to be written
  std::size_t bytes_written = 0;
  std::vector<std::byte> piece;
};

std::vector<std::string> files_written(const std::string& path, const ModelConfig& config, bool split) {
  std::vector<std::string> names{path};
  for (std::int64_t track = 0; split && track < config.tracks; ++track)
    names.push_back(track_file_name(path, track));
  return names;
}

ModelWriter::ModelWriter(const std::string& path, const ModelConfig& config, bool split,
                         std::size_t alignment)
    : impl_(std::make_unique<Impl>(path, config, split, alignment)) {
  for (std::int64_t track = 0; split && track < config.tracks; ++track) impl_->add_track_file(track);
}

ModelWriter::~ModelWriter() = default;

void ModelWriter::write(const TensorSpec& spec, DType dtype, const Fill& fill) {
  PTRT_CHECK(impl_->missing.erase(spec.path) == 1);
  std::optional<WeightLayout> named;
  if (impl_->alignment > 1 && spec.role == WeightRole::embedding) named = WeightLayout::rows;
  DatasetWriter dataset(impl_->file_of(spec.path), spec.path, dtype, spec.shape, named);
  const std::int64_t in = spec.shape.back();
  impl_->write_pieces(dataset, static_cast<std::size_t>(in) * size_of(dtype), spec.elements() / in,
                      [&](std::int64_t row, std::span<std::byte> bytes) { fill(row * in, bytes); });
}

void ModelWriter::write_panels(const TensorSpec& spec, DType dtype, const Fill& fill) {
  PTRT_CHECK(is_multiplied(spec.role) && impl_->missing.erase(spec.path) == 1);
  const std::vector<std::int64_t> shape = panels_shape(spec.shape, dtype);
  std::int64_t panels = 1;
  for (const std::int64_t extent : std::span(shape).first(shape.size() - 1)) panels *= extent;
  DatasetWriter dataset(impl_->file_of(spec.path), spec.path, dtype, shape, WeightLayout::panels);
  impl_->write_pieces(dataset, static_cast<std::size_t>(shape.back()), panels, fill);
}

void ModelWriter::write_scaled(const TensorSpec& spec, DType dtype, const FillScaled& fill) {
  PTRT_CHECK(spec.role == WeightRole::matrix && impl_->missing.erase(spec.path) == 1);
  const std::int64_t in = spec.shape.back(), rows = spec.elements() / in;
  H5File& file = impl_->file_of(spec.path);
  DatasetWriter elements(file, spec.path, dtype, spec.shape);
  const DType scale_type = dtype == DType::int8 ? DType::float16 : DType::float32;
  DatasetWriter scales(file, scale_path(spec), scale_type, scale_shape(spec, dtype));
  const std::int64_t step =
      std::max<std::int64_t>(1, static_cast<std::int64_t>(kPieceBytes / sizeof(float)) / in);
  for (std::int64_t first = 0; first < rows; first += step) {
    const ScaledPiece piece = fill(first, std::min(step, rows - first));
    elements.append(piece.elements);
    scales.append(piece.scales);
    impl_->bytes_written += piece.elements.size() + piece.scales.size();
  }
  elements.finish();
  scales.finish();
}

void ModelWriter::write_tokenizer(const TokenizerBlob& blob) {
  if (blob.kind.empty()) return;
  H5File& file = impl_->files[0].file();
  H5Object group = file.create_group("/tokenizer");
  group.write_attribute("kind", blob.kind);
  if (!blob.chat_template.empty()) group.write_attribute("chat_template", blob.chat_template);
  if (blob.model.empty()) return;
  const std::span<const std::byte> bytes = std::as_bytes(std::span(blob.model));
  H5Dataset dataset =
      file.create_dataset("/tokenizer/model", H5Type::uint8, {static_cast<std::int64_t>(blob.model.size())});
  dataset.write(0, bytes);
  dataset.write_attribute("crc32c", crc32c(0, bytes));
}

void ModelWriter::commit() {
  if (!impl_->missing.empty())
    throw_failure("{}: dataset {} was not written", impl_->files[0].name(), *impl_->missing.begin());
  for (PendingFile& file : impl_->files) file.finish();
  for (std::size_t i = impl_->files.size(); i-- > 0;) impl_->files[i].publish();
}

std::size_t ModelWriter::bytes_written() const {
  return impl_->bytes_written;
}

std::vector<std::string> ModelWriter::files() const {
  std::vector<std::string> names;
  for (const PendingFile& file : impl_->files) names.push_back(file.name());
  return names;
}

}  // namespace ptrt
