#include "model_io/model_file.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include "kernels/error.h"
#include "model_io/crc32c.h"
#include "model_io/h5_file.h"

namespace ptrt {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little);

constexpr std::int64_t kFormatVersion = 1;
constexpr std::size_t kPieceBytes = std::size_t{1} << 20;  // read, then checksummed while in the cache

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

DType element_type(const H5Dataset& dataset, const std::string& file, const std::string& path) {
  switch (dataset.info().type) {
    case H5Type::float32:
      return DType::float32;
    case H5Type::float16:
      return DType::float16;
    case H5Type::uint16: {
      const auto dtype = dataset.string_attribute("dtype");
      if (dtype == "bfloat16") return DType::bfloat16;
      throw_bad_input("{}: dataset {}: uint16 needs the attribute dtype = \"bfloat16\", found {}", file, path,
                      dtype ? fmt::format("dtype = \"{}\"", *dtype) : "none");
    }
    default:
      throw_bad_input(
          "{}: dataset {}: expected float32, float16 or bfloat16 (uint16 with the attribute dtype = "
          "\"bfloat16\"), "
          "found {}",
          file, path, dataset.info().type_name);
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

  // Follows a track's external link, so that a shard file is opened when a tensor of it is first asked for.
  Place locate(const std::string& path) {
    constexpr std::size_t kTracksLength = sizeof("/tracks/") - 1, kGroupLength = kTracksLength + 2;
    if (path.compare(0, kTracksLength, "/tracks/") != 0) return {&main, path};
    const TrackPlace place = find_track(main, std::stoll(path.substr(kTracksLength, 2)));
    const std::string inner = place.group + path.substr(kGroupLength);
    if (place.file == main.path()) return {&main, inner};
    return {&shard(place.file, path.substr(0, kGroupLength)), inner};
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

  H5Dataset open(const TensorSpec& spec) {
    const Place place = locate(spec.path);
    if (!place.file->exists(place.path))
      throw_bad_input("{}: dataset {} is missing; the config asks for it with shape {}", place.file->path(),
                      spec.path, shape_text(spec.shape));
    return place.file->dataset(place.path, spec.path);
  }

  // Reads the whole dataset in order, each piece into buffer(first byte, bytes). Returns the crc32c.
  template <typename Buffer>
  std::uint32_t read_pieces(const H5Dataset& dataset, const StoredTensor& stored, const Buffer& buffer) {
    const std::size_t piece_bytes = dataset.info().contiguous ? kPieceBytes : stored.bytes;
    std::uint32_t crc = 0;
    for (std::size_t at = 0; at < stored.bytes; at += piece_bytes) {
      const std::span<std::byte> piece = buffer(at, std::min(piece_bytes, stored.bytes - at));
      dataset.read(static_cast<std::int64_t>(at / size_of(stored.dtype)), piece);
      crc = crc32c(crc, piece);
      bytes_read += piece.size();
    }
    return crc;
  }

  H5File main;
  ModelConfig config;
  std::map<std::string, H5File> shards;  // opened so far, by path
  std::vector<std::string> files;
  std::size_t bytes_read = 0;
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
  if (!file.exists("/tokenizer/model"))
    throw_bad_input("{}: dataset /tokenizer/model is missing", file.path());
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
  const H5Dataset dataset = impl_->open(spec);
  const std::string& file = impl_->locate(spec.path).file->path();
  const H5DatasetInfo& info = dataset.info();
  if (info.shape != spec.shape)
    throw_bad_input("{}: dataset {}: expected shape {}, found {}", file, spec.path, shape_text(spec.shape),
                    shape_text(info.shape));
  StoredTensor stored;
  stored.dtype = element_type(dataset, file, spec.path);
  if (!info.stored)
    throw_bad_input("{}: dataset {} is incomplete: not all of its data was ever written", file, spec.path);
  stored.shape = info.shape;
  stored.crc32c = stored_crc32c(dataset, file, spec.path);
  stored.bytes = static_cast<std::size_t>(spec.elements()) * size_of(stored.dtype);
  return stored;
}

std::uint32_t ModelFile::read(const TensorSpec& spec, const StoredTensor& stored,
                              std::span<std::byte> out) const {
  PTRT_CHECK(out.size() == stored.bytes);
  const H5Dataset dataset = impl_->open(spec);
  const std::uint32_t crc = impl_->read_pieces(
      dataset, stored, [&](std::size_t at, std::size_t bytes) { return out.subspan(at, bytes); });
  if (stored.crc32c && *stored.crc32c != crc)
    throw_bad_input("{}: dataset {}: expected crc32c {:08x}, found {:08x}: the data is damaged",
                    impl_->locate(spec.path).file->path(), spec.path, *stored.crc32c, crc);
  if (dataset.info().big_endian) swap_bytes(out, size_of(stored.dtype));
  return crc;
}

std::uint32_t ModelFile::content_crc32c(const TensorSpec& spec, const StoredTensor& stored) const {
  std::vector<std::byte> buffer;
  return impl_->read_pieces(impl_->open(spec), stored, [&](std::size_t, std::size_t bytes) {
    buffer.resize(std::max(buffer.size(), bytes));
    return std::span(buffer).first(bytes);
  });
}

}  // namespace ptrt
