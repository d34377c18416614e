#include "seeds.h"

#include <hdf5.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>

#include "kernels/convert.h"
#include "model_io/file/crc32c.h"
#include "model_io/file/file_map.h"
#include "model_io/file/model_writer.h"
#include "model_io/file/tensor_copy.h"
#include "model_io/shard/random_init.h"
#include "with_parents.h"

namespace ptrt {
namespace {

namespace fs = std::filesystem;

const char* const kConfig = R"({
    "name": "seed", "tracks": 2, "layers": 2, "sync_layers": [1, 2],
    "fusion": {"op": "mean", "dispatch_norm": false, "combine_norm": true},
    "hidden_size": 8, "heads": 2, "kv_heads": 1, "head_dim": 4, "ffn_size": 8,
    "vocab_size": 259, "max_context": 64, "norm_eps": 1e-5, "norm_placement": ["pre"],
    "qk_norm": false, "attention_pattern": ["global_rope"], "attention_window": 0,
    "rope_theta": 10000.0, "ffn_pattern": ["dense"], "moe": null,
    "tie_embeddings": true, "bos_token_id": 256, "eos_token_ids": [257]})";

std::vector<TensorSpec> all_tensors(const ModelConfig& config) {
  std::vector<TensorSpec> tensors = shared_tensors(config);
  for (std::int64_t track = 0; track < config.tracks; ++track)
    for (TensorSpec& spec : track_tensors(config, track)) tensors.push_back(std::move(spec));
  return tensors;
}

void write_model(const std::string& path, DType dtype, bool split) {
  const ModelConfig config = parse_config(kConfig, "seed");
  ModelWriter writer(path, config, split);
  for (const TensorSpec& spec : all_tensors(config))
    writer.write(spec, dtype, [&](std::int64_t first, std::span<std::byte> bytes) {
      random_elements(config, spec, 1, dtype, first, bytes);
    });
  writer.write_tokenizer({"bytes", {}, {}});
  writer.commit();
}

void write_scaled(const std::string& path, DType dtype) {
  const ModelConfig config = parse_config(kConfig, "seed");
  ModelWriter writer(path, config, false);
  Int8Rows int8;
  Float8Rows float8;
  for (const TensorSpec& spec : all_tensors(config)) {
    std::vector<std::byte> content(static_cast<std::size_t>(spec.elements()) * sizeof(float));
    random_elements(config, spec, 1, DType::float32, 0, content);
    const std::size_t row = static_cast<std::size_t>(spec.shape.back()) * sizeof(float);
    if (spec.role != WeightRole::matrix) {
      writer.write(spec, DType::float32, [&](std::int64_t first, std::span<std::byte> bytes) {
        std::copy_n(&content[static_cast<std::size_t>(first) * sizeof(float)], bytes.size(), bytes.begin());
      });
      continue;
    }
    writer.write_scaled(spec, dtype, [&](std::int64_t first, std::int64_t count) {
      const auto rows = std::span(content).subspan(static_cast<std::size_t>(first) * row,
                                                   static_cast<std::size_t>(count) * row);
      if (dtype == DType::int8) {
        int8.quantize(spec.weight(DType::float32), first, rows);
        return ModelWriter::ScaledPiece{std::as_bytes(int8.q()), std::as_bytes(int8.scales())};
      }
      float8.quantize(spec.weight(DType::float32), first, rows);
      return ModelWriter::ScaledPiece{std::as_bytes(float8.codes()), std::as_bytes(float8.scales())};
    });
  }
  writer.commit();
}

void write_panels(const std::string& path, const std::string& from) {
  const ModelFile model(from);
  ModelWriter writer(path, model.config(), false, kMapAlignment);
  TensorCopy copy(model, writer, TensorCopy::NotFinite::keep);
  for (const TensorSpec& spec : all_tensors(model.config()))
    copy.copy(spec, model.stat(spec), WeightLayout::panels);
  writer.commit();
}

// As h5py writes: the oldest format, strings of variable length in a global heap.
class ForeignWriter {
 public:
  ForeignWriter(const std::string& path, bool big_endian, bool chunked, H5F_libver_t version)
      : big_endian_(big_endian), chunked_(chunked) {
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(access, version, H5F_LIBVER_LATEST);
    file_ = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
    H5Pclose(access);
  }
  ~ForeignWriter() { H5Fclose(file_); }

  void string(const std::string& object, const char* name, const std::string& value) {
    const hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, H5T_VARIABLE);
    H5Tset_cset(type, H5T_CSET_UTF8);
    const char* text = value.c_str();
    put(object, name, type, type, static_cast<const void*>(&text));
    H5Tclose(type);
  }
  void integer(const std::string& object, const char* name, std::int64_t value) {
    put(object, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
  }
  void group(const std::string& path) { H5Gclose(H5Gcreate2(file_, path.c_str(), with_parents(), 0, 0)); }
  void link(const std::string& path, const std::string& file) {
    H5Lcreate_external(file.c_str(), path.c_str(), file_, path.c_str(), with_parents(), 0);
  }

  void tensor(const TensorSpec& spec, std::vector<std::byte> bytes) {
    const std::vector<hsize_t> shape(spec.shape.begin(), spec.shape.end());
    const hid_t space = H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr);
    const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
    if (chunked_) {
      std::vector<hsize_t> chunk = shape;
      chunk[0] = (chunk[0] + 1) / 2;
      H5Pset_chunk(properties, static_cast<int>(chunk.size()), chunk.data());
      H5Pset_shuffle(properties);
      H5Pset_deflate(properties, 4);
    }
    const hid_t type = big_endian_ ? H5T_IEEE_F32BE : H5T_IEEE_F32LE;
    if (big_endian_)
      for (std::size_t at = 0; at < bytes.size(); at += 4) std::reverse(&bytes[at], &bytes[at] + 4);
    const hid_t dataset = H5Dcreate2(file_, spec.path.c_str(), type, space, with_parents(), properties, 0);
    H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, 0, bytes.data());
    H5Dclose(dataset), H5Pclose(properties), H5Sclose(space);
    const std::uint32_t crc = crc32c(0, bytes);
    put(spec.path, "crc32c", H5T_STD_U32LE, H5T_NATIVE_UINT32, &crc);
  }

 private:
  void put(const std::string& object, const char* name, hid_t type, hid_t memory, const void* value) {
    const hid_t holder = H5Oopen(file_, object.c_str(), 0), space = H5Screate(H5S_SCALAR);
    const hid_t attribute = H5Acreate2(holder, name, type, space, 0, 0);
    H5Awrite(attribute, memory, value);
    H5Aclose(attribute), H5Sclose(space), H5Oclose(holder);
  }

  bool big_endian_, chunked_;
  hid_t file_;
};

void write_foreign(const std::string& path, const std::string& from, bool big_endian, bool chunked,
                   bool split, H5F_libver_t version = H5F_LIBVER_EARLIEST) {
  const ModelFile model(from);
  ForeignWriter writer(path, big_endian, chunked, version);
  writer.string("/", "format", "ptrt");
  writer.integer("/", "format_version", 1);
  writer.string("/", "config", to_json(model.config()));
  writer.group("/tokenizer");
  writer.string("/tokenizer", "kind", "bytes");
  const auto bytes_of = [&](const TensorSpec& spec) {
    const StoredTensor stored = model.stat(spec);
    std::vector<std::byte> bytes(stored.bytes);
    model.open(stored)->content().read(0, bytes);
    return bytes;
  };
  for (const TensorSpec& spec : shared_tensors(model.config())) writer.tensor(spec, bytes_of(spec));
  for (std::int64_t track = 0; track < model.config().tracks; ++track) {
    if (!split) {
      for (const TensorSpec& spec : track_tensors(model.config(), track)) writer.tensor(spec, bytes_of(spec));
      continue;
    }
    const std::string shard = "m.track0" + std::to_string(track) + ".h5";
    writer.link(track_group(track), shard);
    ForeignWriter part((fs::path(path).parent_path() / shard).string(), big_endian, chunked, version);
    for (const TensorSpec& spec : track_tensors(model.config(), track)) part.tensor(spec, bytes_of(spec));
  }
}

std::vector<std::uint8_t> bytes_of_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

Seed take(const std::string& name, const std::string& folder, bool sound) {
  Seed seed{name, {}, {}, {}, {}};
  for (const auto& entry : fs::directory_iterator(folder)) seed.files.push_back(entry.path().string());
  std::ranges::sort(seed.files);  // m.h5 before m.track00.h5
  for (const std::string& file : seed.files) seed.bytes.push_back(bytes_of_file(file));
  seed.datasets.resize(seed.files.size());
  if (!sound) return seed;
  const ModelFile model(seed.files[0]);
  seed.content = read_content(model);
  const auto note = [&](const StoredDataset& stored) {
    if (!stored.offset) return;
    const auto file = std::ranges::find(seed.files, stored.file) - seed.files.begin();
    seed.datasets[static_cast<std::size_t>(file)].emplace_back(*stored.offset, *stored.offset + stored.bytes);
  };
  for (const TensorSpec& spec : all_tensors(model.config())) {
    const StoredTensor stored = model.stat(spec);
    note(stored);
    if (stored.scales) note(*stored.scales);
  }
  return seed;
}

}  // namespace

Content read_content(const ModelFile& file) {
  Content content;
  content.config = to_json(file.config());
  content.tokenizer = file.tokenizer().kind;
  for (const TensorSpec& spec : all_tensors(file.config())) {
    const StoredTensor stored = file.stat(spec);
    const auto reader = file.open(stored);
    Content::Tensor tensor{stored.dtype,
                           stored.layout,
                           std::vector<std::byte>(stored.bytes),
                           {},
                           stored.crc32c && (!stored.scales || stored.scales->crc32c)};
    reader->content().read(0, tensor.bytes);
    reader->content().verify();
    if (stored.scales) {
      tensor.scales.resize(stored.scales->bytes);
      reader->scales()->read(0, tensor.scales);
      reader->scales()->verify();
    }
    content.tensors.emplace(spec.path, std::move(tensor));
  }
  return content;
}

std::vector<Seed> make_seeds(const std::string& folder, const std::string& corpus) {
  std::vector<Seed> seeds;
  const auto add = [&](const std::string& name, const std::function<void(const std::string&)>& write) {
    const std::string place = folder + "/" + name;
    fs::create_directories(place);
    write(place + "/m.h5");
    seeds.push_back(take(name, place, true));
  };
  using P = const std::string&;
  add("float32", [](P path) { write_model(path, DType::float32, false); });
  add("bfloat16_split", [](P path) { write_model(path, DType::bfloat16, true); });
  add("int8", [](P path) { write_scaled(path, DType::int8); });
  add("float8", [](P path) { write_scaled(path, DType::float8_e4m3); });
  const std::string plain = folder + "/float32/m.h5";
  add("panels", [&](P path) { write_panels(path, plain); });
  add("foreign", [&](P path) { write_foreign(path, plain, false, false, false); });
  add("foreign_split", [&](P path) { write_foreign(path, plain, false, false, true); });
  add("foreign_chunked", [&](P path) { write_foreign(path, plain, false, true, false); });
  add("foreign_big_endian", [&](P path) { write_foreign(path, plain, true, false, false); });
  add("foreign_latest", [&](P path) { write_foreign(path, plain, false, true, false, H5F_LIBVER_V110); });
  for (const auto& entry : fs::directory_iterator(corpus)) {
    const std::string name = entry.path().stem().string(), place = folder + "/" + name;
    fs::create_directories(place);
    fs::copy_file(entry.path(), place + "/m.h5");
    seeds.push_back(take(name, place, false));
  }
  std::ranges::sort(seeds, {}, &Seed::name);
  return seeds;
}

}  // namespace ptrt
