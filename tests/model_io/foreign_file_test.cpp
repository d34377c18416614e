// Files as other writers make them: other layouts, byte orders and strings, no checksums.
#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "h5_edit.h"
#include "model_fixture.h"
#include "model_io/file/crc32c.h"
#include "model_io/file/model_file.h"

namespace ptrt {
namespace {

const TensorSpec kExperts{"/tracks/00/layers/001/experts/w_gate", {3, 10, 24}, WeightRole::matrix};

class ForeignFile : public testing::Test {
 protected:
  ForeignFile() : path_(folder_ / "m.h5") {
    write_model(path_, small_config(), 3);
    for (std::size_t i = 0; i < 720; ++i) values_.push_back(static_cast<double>(i) / 8 - 40);
  }

  std::vector<float> read_experts() {
    const ModelFile file(path_);
    const StoredTensor stored = file.stat(kExperts);
    EXPECT_EQ(stored.dtype, DType::float32);
    const std::vector<std::byte> bytes = read_tensor(file, stored);
    std::vector<float> found(720);
    std::memcpy(found.data(), bytes.data(), bytes.size());
    EXPECT_EQ(file.bytes_read(), 2880u);
    return found;
  }

  std::vector<float> expected() const { return {values_.begin(), values_.end()}; }

  TempFolder folder_;
  std::string path_;
  std::vector<double> values_;
};

TEST_F(ForeignFile, CompressedChunks) {
  replace_dataset(path_, kExperts.path, ForeignType::float32, kExperts.shape, values_,
                  ForeignLayout::compressed_chunks);
  EXPECT_EQ(read_experts(), expected());
}

// Every tensor of the file, as another machine writes it.
void make_big_endian(const std::string& path) {
  std::map<std::string, std::vector<double>> contents;
  {
    const ModelFile file(path);
    for (const TensorSpec& spec : all_tensors(file.config())) {
      const std::vector<std::byte> bytes = read_tensor(file, file.stat(spec));
      std::vector<float> values(bytes.size() / sizeof(float));
      std::memcpy(values.data(), bytes.data(), bytes.size());
      contents[spec.path] = {values.begin(), values.end()};
    }
  }
  for (const TensorSpec& spec : all_tensors(small_config()))
    replace_dataset(path, spec.path, ForeignType::float32_big_endian, spec.shape, contents.at(spec.path));
}

TEST_F(ForeignFile, BigEndian) {
  make_big_endian(path_);
  replace_dataset(path_, kExperts.path, ForeignType::float32_big_endian, kExperts.shape, values_);
  EXPECT_EQ(read_experts(), expected());
  // The checksum is of the bytes as the file has them.
  std::vector<float> swapped = expected();
  for (float& value : swapped) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits = __builtin_bswap32(bits);
    std::memcpy(&value, &bits, 4);
  }
  set_integer(path_, kExperts.path, "crc32c", crc32c(0, std::as_bytes(std::span(swapped))));
  EXPECT_EQ(read_experts(), expected());
  const ModelFile file(path_);
  for (const TensorSpec& spec : all_tensors(file.config())) EXPECT_NO_THROW(file.stat(spec));
}

// The byte order of a type is one bit, and the checksum is of the bytes alone.
TEST_F(ForeignFile, ByteOrdersAreNotMixed) {
  replace_dataset(path_, kExperts.path, ForeignType::float32_big_endian, kExperts.shape, values_);
  const ModelFile file(path_);
  file.stat(shared_tensors(file.config())[0]);
  expect_words(message_of([&] { file.stat(kExperts); }), {"m.h5", kExperts.path, "big-endian", "/shared/"});
}

TEST_F(ForeignFile, NoChecksum) {
  remove_attribute(path_, kExperts.path, "crc32c");
  EXPECT_EQ(ModelFile(path_).stat(kExperts).crc32c, std::nullopt);
  flip_bit(path_, kExperts.path);
  EXPECT_NO_THROW(read_experts());
}

TEST_F(ForeignFile, StringsOfFixedLength) {
  const std::string config = to_json(small_config());
  for (const char padding : {'\0', ' '}) {
    set_fixed_string(path_, "/", "format", "ptrt", padding);
    set_fixed_string(path_, "/", "config", config, padding);
    set_fixed_string(path_, "/tokenizer", "kind", "bytes", padding);
    const ModelFile file(path_);
    EXPECT_EQ(to_json(file.config()), config);
    EXPECT_EQ(file.tokenizer().kind, "bytes");
  }
}

TEST_F(ForeignFile, NoTokenizer) {
  remove_object(path_, "/tokenizer");
  EXPECT_EQ(ModelFile(path_).tokenizer().kind, "");
}

// A later library may know more attributes and groups than this program does.
TEST_F(ForeignFile, UnknownObjectsAreIgnored) {
  set_integer(path_, "/", "trained_steps", 1000);
  set_integer(path_, kExperts.path, "quality", 3);
  replace_dataset(path_, "/shared/notes", ForeignType::int32, {1}, {1});
  EXPECT_NO_THROW(read_experts());
}

}  // namespace
}  // namespace ptrt
