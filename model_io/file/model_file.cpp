#include "model_io/file/model_file.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/base/file_descriptor.h"
#include "kernels/float8.h"
#include "model_io/file/crc32c.h"
#include "model_io/file/dataset_consistency.h"
#include "model_io/file/panels_reader.h"
#include "model_io/file/tensor_types.h"
#include "model_io/hdf5/linked_files.h"

namespace ptrt {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little);

constexpr std::int64_t kFormatVersion = 1;
constexpr std::int64_t kLargestTokenizer = std::int64_t{256} << 20;  // bytes

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

void check_format(const H5File& file) {
  const H5Object root = file.root();
  const auto format = root.string_attribute("format");
  if (!format) throw_bad_input("{}: not a ptrt model: root attribute \"format\" is missing", file.path());
  if (*format != "ptrt")
    throw_bad_input("{}: not a ptrt model: root attribute \"format\": expected \"ptrt\", found \"{}\"",
                    file.path(), *format);
  const auto version = root.integer_attribute("format_version");
  if (!version) throw_bad_input("{}: root attribute \"format_version\" is missing", file.path());
  if (*version != kFormatVersion)
    throw_bad_input("{}: root attribute \"format_version\": expected {}, found {}", file.path(),
                    kFormatVersion, *version);
}

std::string config_text(const H5File& file) {
  check_format(file);
  auto text = file.root().string_attribute("config");
  if (!text) throw_bad_input("{}: root attribute \"config\" is missing", file.path());
  return *std::move(text);
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
  Impl(std::string path, bool trusted, const ModelMetadata* metadata)
      : main(std::move(path)), trust_links(trusted), all_known(metadata != nullptr) {
    if (all_known)
      known = *metadata;
    else
      known.config = config_text(files().main());
    config = parse_config(known.config, main);
    other_files = known.other_files;
    for (const auto& [role, stored] : known.tensors) tensors.emplace(std::pair(stored.name, role), stored);
  }

  // Opened when they are first asked for: whoever has the metadata and reads runs of bytes needs no library.
  LinkedFiles& files() {
    if (!links) links.emplace(main, trust_links);
    return *links;
  }

  // A dataset, by its name in the model, and the file it lies in.
  struct Found {
    H5Dataset dataset;
    const H5File* file;
  };

  std::optional<Found> find(const std::string& path) {
    const auto place = files().find(path);
    if (!place) return std::nullopt;
    if (place->group == nullptr)
      throw_bad_input("{}: {} cannot be opened as a dataset: it is a root group", place->file->path(), path);
    return Found{place->group->dataset(place->name, path, files().trusted()), place->file};
  }

  // `why` it must be there is for messages.
  Found open(const std::string& path, const std::vector<std::int64_t>& shape, const std::string& why) {
    auto found = find(path);
    if (!found)
      throw_bad_input("{}: dataset {} is missing; {} asks for it with shape {}", files().file_above(path),
                      path, why, shape_text(shape));
    return *std::move(found);
  }

  static void check_shape(const Found& found, const std::string& path,
                          const std::vector<std::int64_t>& shape) {
    if (found.dataset.info().shape != shape)
      throw_bad_input("{}: dataset {}: expected shape {}, found {}", found.file->path(), path,
                      shape_text(shape), shape_text(found.dataset.info().shape));
  }

  StoredDataset stat(const Found& found, const std::string& path) {
    const H5File& file = *found.file;
    H5DatasetInfo info = found.dataset.info();
    if (!info.stored)
      throw_bad_input("{}: dataset {} is incomplete: not all of its data was ever written", file.path(),
                      path);
    StoredDataset stored;
    stored.file = file.path();
    stored.name = path;
    stored.crc32c = stored_crc32c(found.dataset, file.path(), path);
    stored.bytes = found.dataset.element_bytes();
    for (const std::int64_t extent : info.shape) stored.bytes *= static_cast<std::size_t>(extent);
    if (info.offset && !file.holds(*info.offset, stored.bytes)) info.offset.reset();
    consistency.check(stored, info, found.dataset.element_bytes());
    for (const std::string& other : info.other_files) other_files.push_back(other);
    if (info.big_endian) return stored;
    stored.descriptor = file.descriptor();
    stored.offset = info.offset;
    return stored;
  }

  // Start-up asks several times for each tensor, and the library is slow.
  const StoredTensor& stat(const TensorSpec& spec) {
    const auto found = tensors.find({spec.path, spec.role});
    if (found == tensors.end() || found->second.shape != spec.shape)
      return tensors.insert_or_assign({spec.path, spec.role}, look_up(spec)).first->second;
    give_descriptor(found->second);
    if (found->second.scales) give_descriptor(*found->second.scales);
    return found->second;
  }

  void give_descriptor(StoredDataset& stored) {
    if (stored.offset && stored.descriptor < 0) stored.descriptor = open_known(stored.file);
  }

  int open_known(const std::string& path) {
    if (const auto open = opened.find(path); open != opened.end()) return open->second.get();
    const auto file = std::ranges::find(known.files, path, &ModelMetadata::File::path);
    FileDescriptor descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat status {};
    if (!descriptor || ::fstat(descriptor.get(), &status) != 0)
      throw_bad_input("cannot open {}: {}", path, std::strerror(errno));
    if (file == known.files.end() || file->device != status.st_dev || file->inode != status.st_ino)
      throw_bad_input("{}: another file took its place while it was opened", path);
    return opened.emplace(path, std::move(descriptor)).first->second.get();
  }

  StoredTensor look_up(const TensorSpec& spec) {
    const Found found = open(spec.path, spec.shape, "the config");
    const H5Dataset& dataset = found.dataset;
    const std::string file = found.file->path();
    const std::optional<WeightLayout> layout = stored_layout(dataset, spec, file);
    const bool panels = layout == WeightLayout::panels;
    if (!panels) check_shape(found, spec.path, spec.shape);
    const DType dtype = panels ? panel_type(dataset, spec, file) : element_type(dataset, spec, file);
    if (panels) check_shape(found, spec.path, panels_shape(spec.shape, dtype));
    StoredTensor stored{stat(found, spec.path), dtype, spec.shape, {}, layout.value_or(WeightLayout::rows)};
    if (stored.has_scales_apart()) stored.scales = look_up_scales(spec, dtype);
    if (dtype == DType::float8_e4m3) stored.widened = widened_type(*stored.scales);
    return stored;
  }

  StoredDataset look_up_scales(const TensorSpec& spec, DType dtype) {
    const std::vector<std::int64_t> shape = scale_shape(spec, dtype);
    const std::string path = scale_path(spec);
    const Found scales = open(path, shape, fmt::format("the {} dataset {}", to_string(dtype), spec.path));
    check_shape(scales, path, shape);
    const bool int8 = dtype == DType::int8;
    if (scales.dataset.info().type != (int8 ? H5Type::float16 : H5Type::float32))
      throw_bad_input("{}: dataset {}: expected {}, found {}", scales.file->path(), path,
                      int8 ? "float16" : "float32", scales.dataset.type_name());
    return stat(scales, path);
  }

  // Memory is planned, and the type of the products chosen, before anything is loaded: both depend on the values of
  // the scales, which are few. They do not count as read: they are read again with their matrix.
  DType widened_type(const StoredDataset& float8_scales) {
    std::vector<float> scales(float8_scales.bytes / sizeof(float));
    std::atomic<std::size_t> not_counted = 0;
    reader(float8_scales, not_counted)->read_uncounted(0, std::as_writable_bytes(std::span(scales)));
    check_float8_scales(float8_scales, 0, scales);
    return widened_float8_type(scales);
  }

  TokenizerBlob read_tokenizer() {
    const H5Group* group = files().find_group("/tokenizer");
    if (group == nullptr) return {};
    const std::string file = files().file_of_group("/tokenizer");
    const auto kind = group->string_attribute("kind");
    if (!kind) throw_bad_input("{}: attribute \"kind\" of /tokenizer is missing", file);
    TokenizerBlob blob{*kind, {}, file};
    blob.chat_template = group->string_attribute("chat_template").value_or("");
    if (*kind != "sentencepiece" && *kind != "huggingface") return blob;
    const auto found = find("/tokenizer/model");
    if (!found) throw_bad_input("{}: dataset /tokenizer/model is missing", file);
    const H5DatasetInfo& info = found->dataset.info();
    if (info.type != H5Type::uint8 || info.shape.size() != 1)
      throw_bad_input("{}: dataset /tokenizer/model: expected uint8 of one dimension, found {} of shape {}",
                      file, found->dataset.type_name(), shape_text(info.shape));
    if (!info.stored) throw_bad_input("{}: dataset /tokenizer/model was never written", file);
    if (info.shape[0] < 0 || info.shape[0] > kLargestTokenizer)
      throw_bad_input("{}: dataset /tokenizer/model: expected up to {} bytes, found {}", file,
                      kLargestTokenizer, info.shape[0]);
    blob.model.resize(static_cast<std::size_t>(info.shape[0]));
    const std::span<std::byte> bytes = std::as_writable_bytes(std::span(blob.model));
    found->dataset.read(0, bytes);
    const auto crc = stored_crc32c(found->dataset, file, "/tokenizer/model");
    if (crc && *crc != crc32c(0, bytes))
      throw_bad_input("{}: dataset /tokenizer/model does not match its crc32c: the data is damaged", file);
    return blob;
  }

  std::vector<ModelMetadata::File> known_files() {
    if (all_known) return known.files;
    std::vector<ModelMetadata::File> all;
    for (const H5File* file : files().opened()) {
      struct stat status {};
      if (::fstat(file->descriptor(), &status) != 0)
        throw_failure("{}: {}", file->path(), std::strerror(errno));
      all.push_back({file->path(), status.st_dev, status.st_ino});
    }
    return all;
  }

  std::vector<std::string> file_names() {
    std::vector<std::string> names;
    for (const ModelMetadata::File& file : known_files()) names.push_back(file.path);
    names.insert(names.end(), other_files.begin(), other_files.end());
    return names;
  }

  std::unique_ptr<DatasetReader> reader(const StoredDataset& stored, std::atomic<std::size_t>& read_so_far) {
    if (stored.offset) {
      FileMap& map = maps.try_emplace(stored.descriptor, stored.descriptor, stored.file).first->second;
      return std::make_unique<DatasetReader>(stored, read_so_far, map);
    }
    const auto found = find(stored.name);
    if (!found) throw_bad_input("{}: dataset {} is missing", stored.file, stored.name);
    const H5Dataset& dataset = found->dataset;
    std::vector<std::byte> content(stored.bytes);
    dataset.read(0, content);
    read_so_far += content.size();
    const std::uint32_t crc = crc32c(0, content);
    if (dataset.info().big_endian) swap_bytes(content, dataset.element_bytes());
    return std::make_unique<DatasetReader>(stored, std::move(content), crc);
  }

  std::string main;
  bool trust_links;
  std::optional<LinkedFiles> links;
  bool all_known;       // by another process
  ModelMetadata known;  // else the config alone
  ModelConfig config;
  std::map<std::string, FileDescriptor> opened;  // of the files known, by path
  DatasetConsistency consistency;
  std::vector<std::string> other_files;                                // of datasets with data elsewhere
  std::map<int, FileMap> maps;                                         // of the files, by descriptor
  std::map<std::pair<std::string, WeightRole>, StoredTensor> tensors;  // looked up so far
  std::atomic<std::size_t> bytes_read = 0;
};

ModelFile::ModelFile(const std::string& path, bool trust_links, const ModelMetadata* known)
    : impl_(std::make_unique<Impl>(path, trust_links, known)) {}
ModelFile::~ModelFile() = default;
ModelFile::ModelFile(ModelFile&&) noexcept = default;

const std::string& ModelFile::path() const {
  return impl_->main;
}
const ModelConfig& ModelFile::config() const {
  return impl_->config;
}
std::size_t ModelFile::bytes_read() const {
  return impl_->bytes_read;
}
std::vector<std::string> ModelFile::files_opened() const {
  return impl_->file_names();
}
std::string ModelFile::track_file(std::int64_t track) const {
  if (impl_->all_known) return impl_->known.track_files.at(static_cast<std::size_t>(track));
  return impl_->files().file_of_group(track_group(track));
}

bool ModelFile::has_track_file(std::int64_t track) const {
  std::error_code error;
  return fs::exists(track_file(track), error);
}

TokenizerBlob ModelFile::tokenizer() const {
  return impl_->all_known ? impl_->known.tokenizer : impl_->read_tokenizer();
}

ModelMetadata ModelFile::metadata(const std::function<void(const StoredTensor&)>& look) const {
  ModelMetadata all{impl_->known.config, tokenizer(), {}, {}, {}, {}};
  const auto add = [&](const TensorSpec& spec) {
    all.tensors.push_back({spec.role, stat(spec)});
    StoredTensor& stored = all.tensors.back().stored;
    if (look) look(stored);
    stored.descriptor = -1;
    if (stored.scales) stored.scales->descriptor = -1;
  };
  for (const TensorSpec& spec : shared_tensors(config())) add(spec);
  for (std::int64_t track = 0; track < config().tracks; ++track) {
    all.track_files.push_back(track_file(track));
    if (!has_track_file(track)) continue;
    for (const TensorSpec& spec : track_tensors(config(), track)) add(spec);
  }
  all.files = impl_->known_files();
  all.other_files = impl_->other_files;
  return all;
}

StoredTensor ModelFile::stat(const TensorSpec& spec) const {
  return impl_->stat(spec);
}

std::unique_ptr<TensorReader> ModelFile::open(const StoredTensor& stored) const {
  const auto reader = [&](const StoredDataset& dataset) { return impl_->reader(dataset, impl_->bytes_read); };
  if (stored.layout == WeightLayout::panels) return std::make_unique<PanelsReader>(stored, reader(stored));
  auto scales = stored.scales ? reader(*stored.scales) : nullptr;
  if (stored.dtype == DType::float8_e4m3)
    return std::make_unique<Float8Reader>(stored, reader(stored), std::move(scales));
  return std::make_unique<RowsReader>(stored, reader(stored), std::move(scales));
}

}  // namespace ptrt
