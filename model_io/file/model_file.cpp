#include "model_io/file/model_file.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/int8.h"
#include "model_io/file/crc32c.h"
#include "model_io/file/h5_file.h"
#include "model_io/file/panels_reader.h"

namespace ptrt {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little);

constexpr std::int64_t kFormatVersion = 1;

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

// Main file opened and found to be of our format.
H5File open_main(const std::string& path) {
  H5File file = H5File::open(path);
  const H5Object root = file.group("/");
  const auto format = root.string_attribute("format");
  if (!format) throw_bad_input("{}: not a ptrt model: root attribute \"format\" is missing", path);
  if (*format != "ptrt")
    throw_bad_input("{}: not a ptrt model: root attribute \"format\": expected \"ptrt\", found \"{}\"", path,
                    *format);
  const auto version = root.integer_attribute("format_version");
  if (!version) throw_bad_input("{}: root attribute \"format_version\" is missing", path);
  if (*version != kFormatVersion)
    throw_bad_input("{}: root attribute \"format_version\": expected {}, found {}", path, kFormatVersion,
                    *version);
  return file;
}

ModelConfig read_config(const H5File& file) {
  const auto text = file.group("/").string_attribute("config");
  if (!text) throw_bad_input("{}: root attribute \"config\" is missing", file.path());
  return parse_config(*text, file.path());
}

// Where a track lies: the file that holds it and its group there.
struct TrackPlace {
  std::string file, group;
};

TrackPlace find_track(const H5File& main, std::int64_t track) {
  const std::string group = track_group(track);
  const auto link = main.external_link(group);
  if (!link) return {main.path(), group};
  const fs::path target(link->file);  // relative to the main file's folder
  const fs::path file = target.is_absolute() ? target : fs::path(main.path()).parent_path() / target;
  return {file.string(), link->path == "/" ? "" : link->path};
}

std::optional<WeightLayout> stored_layout(const H5Dataset& dataset, const TensorSpec& spec,
                                          const std::string& file) {
  const auto name = dataset.string_attribute("layout");
  if (!name) return std::nullopt;
  if (*name == kRowLayoutName) return WeightLayout::rows;
  if (*name != kPanelLayoutName)
    throw_bad_input(
        "{}: dataset {}: layout \"{}\" is not known here, \"{}\" is: `ptrt pack --layout rows` of the "
        "version that wrote the file makes a plain one of it",
        file, spec.path, *name, kPanelLayoutName);
  if (!is_multiplied(spec.role))
    throw_bad_input("{}: dataset {}: layout \"{}\" is for matrices that products take", file, spec.path,
                    *name);
  return WeightLayout::panels;
}

// In panels the attribute names the type, and the dataset has bytes.
DType panel_type(const H5Dataset& dataset, const TensorSpec& spec, const std::string& file) {
  if (dataset.info().type != H5Type::uint8)
    throw_bad_input("{}: dataset {}: expected uint8 for layout \"{}\", found {}", file, spec.path,
                    kPanelLayoutName, dataset.info().type_name);
  const auto name = dataset.string_attribute("dtype");
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16, DType::int8}) {
    if (name != to_string(dtype)) continue;
    if (dtype == DType::int8 && spec.role != WeightRole::matrix) break;
    return dtype;
  }
  throw_bad_input(
      "{}: dataset {}: expected the attribute dtype = \"float32\", \"float16\"{} \"bfloat16\"{}, found {}",
      file, spec.path, spec.role == WeightRole::matrix ? "," : " or",
      spec.role == WeightRole::matrix ? " or \"int8\"" : "", name ? fmt::format("\"{}\"", *name) : "none");
}

DType element_type(const H5Dataset& dataset, const TensorSpec& spec, const std::string& file) {
  const bool may_be_int8 = spec.role == WeightRole::matrix;
  switch (dataset.info().type) {
    case H5Type::float32:
      return DType::float32;
    case H5Type::float16:
      return DType::float16;
    case H5Type::uint16: {
      const auto dtype = dataset.string_attribute("dtype");
      if (dtype == "bfloat16") return DType::bfloat16;
      throw_bad_input("{}: dataset {}: uint16 needs the attribute dtype = \"bfloat16\", found {}", file,
                      spec.path, dtype ? fmt::format("dtype = \"{}\"", *dtype) : "none");
    }
    case H5Type::int8:
      if (may_be_int8) return DType::int8;
      [[fallthrough]];
    default:
      throw_bad_input(
          "{}: dataset {}: expected float32, float16{} bfloat16 (uint16 with the attribute dtype = "
          "\"bfloat16\"){}, found {}",
          file, spec.path, may_be_int8 ? "," : " or", may_be_int8 ? " or int8" : "; int8 is for matrices",
          dataset.info().type_name);
  }
}

std::optional<std::uint32_t> stored_crc32c(const H5Dataset& dataset, const std::string& file,
                                           const std::string& path) {
  const auto value = dataset.integer_attribute("crc32c");
  if (!value) return std::nullopt;
  if (*value < 0 || *value > UINT32_MAX)
    throw_bad_input("{}: dataset {}: attribute \"crc32c\": expected an unsigned 32-bit integer, found {}",
                    file, path, *value);
  return static_cast<std::uint32_t>(*value);
}

void swap_bytes(std::span<std::byte> bytes, std::size_t element_bytes) {
  for (std::size_t at = 0; at < bytes.size(); at += element_bytes) {
    const auto element = bytes.subspan(at, element_bytes);
    std::reverse(element.begin(), element.end());
  }
}

}  // namespace

struct ModelFile::Impl {
  explicit Impl(const std::string& path) : main(open_main(path)), config(read_config(main)), files{path} {}

  struct Place {
    const H5File* file;
    std::string path;  // of the dataset in that file
  };

  // Follows a track's external link, so that a shard file is opened when a tensor of it is first
  // asked for.
  Place locate(const std::string& path) {
    constexpr std::size_t kTracksLength = sizeof("/tracks/") - 1, kGroupLength = kTracksLength + 2;
    if (path.compare(0, kTracksLength, "/tracks/") != 0) return {&main, path};
    const std::string group = path.substr(0, kGroupLength);
    auto found = tracks.find(group);
    if (found == tracks.end())
      found = tracks.emplace(group, find_track(main, std::stoll(group.substr(kTracksLength)))).first;
    const TrackPlace& place = found->second;
    const std::string inner = place.group + path.substr(kGroupLength);
    if (place.file == main.path()) return {&main, inner};
    return {&shard(place.file, group), inner};
  }

  const H5File& shard(const std::string& file, const std::string& group) {
    const auto found = shards.find(file);
    if (found != shards.end()) return found->second;
    if (std::error_code error; !fs::exists(file, error))
      throw_bad_input("{}: {} lies in the file {}, which is missing", main.path(), group, file);
    const auto added = shards.emplace(file, H5File::open(file)).first;
    files.push_back(file);
    return added->second;
  }

  // The dataset with the name `path` in the model; `why` it must be there is for messages.
  H5Dataset open(const std::string& path, const std::vector<std::int64_t>& shape, const std::string& why) {
    const Place place = locate(path);
    auto found = place.file->find_dataset(place.path, path);
    if (!found)
      throw_bad_input("{}: dataset {} is missing; {} asks for it with shape {}", place.file->path(), path,
                      why, shape_text(shape));
    return *std::move(found);
  }

  void check_shape(const H5Dataset& dataset, const std::string& path,
                   const std::vector<std::int64_t>& shape) {
    if (dataset.info().shape != shape)
      throw_bad_input("{}: dataset {}: expected shape {}, found {}", locate(path).file->path(), path,
                      shape_text(shape), shape_text(dataset.info().shape));
  }

  StoredDataset stat(const H5Dataset& dataset, const std::string& path) {
    const H5File& file = *locate(path).file;
    const H5DatasetInfo& info = dataset.info();
    if (!info.stored)
      throw_bad_input("{}: dataset {} is incomplete: not all of its data was ever written", file.path(),
                      path);
    StoredDataset stored;
    stored.file = file.path();
    stored.name = path;
    stored.crc32c = stored_crc32c(dataset, file.path(), path);
    stored.bytes = dataset.element_bytes();
    for (const std::int64_t extent : info.shape) stored.bytes *= static_cast<std::size_t>(extent);
    if (info.big_endian) return stored;
    stored.descriptor = file.descriptor();
    stored.offset = info.offset;
    return stored;
  }

  // Start-up asks several times for each tensor, and the library is slow.
  const StoredTensor& stat(const TensorSpec& spec) {
    const auto known = tensors.find({spec.path, spec.role});
    if (known != tensors.end() && known->second.shape == spec.shape) return known->second;
    return tensors.insert_or_assign({spec.path, spec.role}, look_up(spec)).first->second;
  }

  StoredTensor look_up(const TensorSpec& spec) {
    const H5Dataset dataset = open(spec.path, spec.shape, "the config");
    const std::string file = locate(spec.path).file->path();
    const std::optional<WeightLayout> layout = stored_layout(dataset, spec, file);
    const bool panels = layout == WeightLayout::panels;
    if (!panels) check_shape(dataset, spec.path, spec.shape);
    const DType dtype = panels ? panel_type(dataset, spec, file) : element_type(dataset, spec, file);
    if (panels) check_shape(dataset, spec.path, panels_shape(spec.shape, dtype));
    StoredTensor stored{stat(dataset, spec.path), dtype, spec.shape, {}, layout.value_or(WeightLayout::rows)};
    if (dtype == DType::int8 && !panels) stored.scales = look_up_scales(spec);
    return stored;
  }

  StoredDataset look_up_scales(const TensorSpec& spec) {
    std::vector<std::int64_t> shape = spec.shape;
    shape.back() = int8_groups(shape.back());
    const std::string path = scale_path(spec);
    const H5Dataset scales = open(path, shape, fmt::format("the int8 dataset {}", spec.path));
    check_shape(scales, path, shape);
    if (scales.info().type != H5Type::float16)
      throw_bad_input("{}: dataset {}: expected float16, found {}", locate(path).file->path(), path,
                      scales.info().type_name);
    return stat(scales, path);
  }

  std::unique_ptr<DatasetReader> reader(const StoredDataset& stored) {
    if (stored.offset) {
      FileMap& map = maps.try_emplace(stored.descriptor, stored.descriptor, stored.file).first->second;
      return std::make_unique<DatasetReader>(stored, bytes_read, map);
    }
    const Place place = locate(stored.name);
    const H5Dataset dataset = place.file->dataset(place.path, stored.name);
    std::vector<std::byte> content(stored.bytes);
    dataset.read(0, content);
    bytes_read += content.size();
    const std::uint32_t crc = crc32c(0, content);
    if (dataset.info().big_endian) swap_bytes(content, dataset.element_bytes());
    return std::make_unique<DatasetReader>(stored, std::move(content), crc);
  }

  H5File main;
  ModelConfig config;
  std::map<std::string, TrackPlace> tracks;                            // looked up so far, by group
  std::map<std::string, H5File> shards;                                // opened so far, by path
  std::map<int, FileMap> maps;                                         // of the files, by descriptor
  std::map<std::pair<std::string, WeightRole>, StoredTensor> tensors;  // looked up so far
  std::vector<std::string> files;
  std::atomic<std::size_t> bytes_read = 0;
};

ModelFile::ModelFile(const std::string& path) : impl_(std::make_unique<Impl>(path)) {}
ModelFile::~ModelFile() = default;
ModelFile::ModelFile(ModelFile&&) noexcept = default;

const std::string& ModelFile::path() const {
  return impl_->main.path();
}
const ModelConfig& ModelFile::config() const {
  return impl_->config;
}
std::size_t ModelFile::bytes_read() const {
  return impl_->bytes_read;
}
std::vector<std::string> ModelFile::files_opened() const {
  return impl_->files;
}
std::string ModelFile::track_file(std::int64_t track) const {
  return find_track(impl_->main, track).file;
}

TokenizerBlob ModelFile::tokenizer() const {
  const H5File& file = impl_->main;
  if (!file.exists("/tokenizer")) return {};
  const auto kind = file.group("/tokenizer").string_attribute("kind");
  if (!kind) throw_bad_input("{}: attribute \"kind\" of /tokenizer is missing", file.path());
  TokenizerBlob blob{*kind, {}, file.path()};
  if (*kind != "sentencepiece" && *kind != "huggingface") return blob;
  const H5Dataset dataset = file.dataset("/tokenizer/model");
  const H5DatasetInfo& info = dataset.info();
  if (info.type != H5Type::uint8 || info.shape.size() != 1)
    throw_bad_input("{}: dataset /tokenizer/model: expected uint8 of one dimension, found {} of shape {}",
                    file.path(), info.type_name, shape_text(info.shape));
  if (!info.stored) throw_bad_input("{}: dataset /tokenizer/model was never written", file.path());
  blob.model.resize(static_cast<std::size_t>(info.shape[0]));
  dataset.read(0, std::as_writable_bytes(std::span(blob.model)));
  const auto crc = stored_crc32c(dataset, file.path(), "/tokenizer/model");
  if (crc && *crc != crc32c(0, std::as_bytes(std::span(blob.model))))
    throw_bad_input("{}: dataset /tokenizer/model does not match its crc32c: the data is damaged",
                    file.path());
  return blob;
}

StoredTensor ModelFile::stat(const TensorSpec& spec) const {
  return impl_->stat(spec);
}

std::unique_ptr<TensorReader> ModelFile::open(const StoredTensor& stored) const {
  if (stored.layout == WeightLayout::panels)
    return std::make_unique<PanelsReader>(stored, impl_->reader(stored));
  return std::make_unique<RowsReader>(stored, impl_->reader(stored),
                                      stored.scales ? impl_->reader(*stored.scales) : nullptr);
}

}  // namespace ptrt
