// Models in panels: the same weights as from rows, mapped where they can be, read where not, and damage
// found.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>

#include "h5_edit.h"
#include "kernels/cpu/reference_backend.h"
#include "kernels/cpu/weights/packed.h"
#include "kernels/make_cpu_backend.h"
#include "model_fixture.h"
#include "model_io/file/file_map.h"
#include "model_io/file/tensor_copy.h"
#include "model_io/shard/track_shard.h"
#include "packed_models.h"
#include "shard_content.h"

namespace ptrt {
namespace {

class PackedFile : public testing::TestWithParam<DType> {
 protected:
  PackedFile() : rows_(folder_ / "m.h5"), panels_(folder_ / "p.h5") {}
  void write(const ModelConfig& config, bool split = false) {
    write_typed(rows_, config, GetParam());
    rewrite(rows_, panels_, WeightLayout::panels, split);
  }
  bool int8() const { return GetParam() == DType::int8; }

  TempFolder folder_;
  std::string rows_, panels_;
};

TEST_P(PackedFile, IsMappedAndHoldsTheSame) {
  for (const bool tied : {false, true})
    for (const bool split : {false, true}) {
      SCOPED_TRACE(testing::Message() << (tied ? "tied " : "") << (split ? "split" : ""));
      ModelConfig config = many_pieces();
      config.tie_embeddings = tied;
      write(config, split);
      const CpuOptions options{.threads = 2, .compute = int8() ? Compute::int8 : Compute::float32};
      const auto plain = make_cpu_backend(options), mapped = make_cpu_backend(options);
      const auto expected = all_weights(load_shard(ModelFile(rows_), 0, 1, *plain));
      const TrackShard shard = load_shard(ModelFile(panels_), 0, 1, *mapped);  // the file is closed by then
      EXPECT_EQ(all_weights(shard), expected);
      EXPECT_EQ(mapped->weight_bytes(), plain->weight_bytes());
      std::size_t table = 0;   // that of the plain file is mapped too, where it is not a matrix
      std::size_t copied = 0;  // vectors are widened, and what is small is not aligned
      const ModelFile file(panels_);
      for (const TensorSpec& spec : model_tensors(config)) {
        const std::size_t bytes = file.stat(spec).bytes;
        if (spec.path == "/shared/embedding") table = tied ? 0 : bytes;
        if (spec.role == WeightRole::vector)
          copied += static_cast<std::size_t>(spec.elements()) * sizeof(float);
        else if (bytes < kMapAlignment)
          copied += bytes;
      }
      EXPECT_EQ(plain->mapped_bytes(), table);
      EXPECT_EQ(mapped->mapped_bytes(), mapped->weight_bytes() - copied);
      EXPECT_GT(mapped->mapped_bytes(), mapped->weight_bytes() / 10 * 9);
    }
}

// Where the weights are kept in another type, they are read and packed as from rows.
TEST_P(PackedFile, IsReadWhereWeightsAreConverted) {
  if (int8()) return;
  write(many_pieces());
  const CpuOptions cases[] = {{.threads = 2, .compute = Compute::bfloat16},
                              {.threads = 2, .compute = Compute::int8, .quantize_int8 = true}};
  for (const CpuOptions& options : cases) {
    const auto plain = make_cpu_backend(options), packed = make_cpu_backend(options);
    const auto expected = all_weights(load_shard(ModelFile(rows_), 0, 1, *plain));
    EXPECT_EQ(all_weights(load_shard(ModelFile(panels_), 0, 1, *packed)), expected);
    // bfloat16 products take bfloat16 as it is; all else is converted but for routers and the table.
    const bool as_stored = GetParam() == DType::bfloat16 && !options.quantize_int8;
    EXPECT_EQ(packed->mapped_bytes() > packed->weight_bytes() / 2, as_stored);
  }
}

TEST_P(PackedFile, GivesItsRowsToOtherBackends) {
  write(small_config());
  ReferenceBackend plain, packed;
  const TrackShard expected = load_shard(ModelFile(rows_), 0, 2, plain);
  const TrackShard found = load_shard(ModelFile(panels_), 0, 2, packed);
  const auto expect_same = [](const Weight& a, const Weight& b) {
    ASSERT_EQ(a.count * a.out * a.in, b.count * b.out * b.in);
    for (std::int64_t i = 0; i < a.count * a.out * a.in; ++i)
      ASSERT_EQ(weight_element(a, i), weight_element(b, i)) << i;
  };
  expect_same(found.lm_head, expected.lm_head);
  for (std::size_t t = 0; t < 2; ++t) {
    expect_same(found.layers[0].wk[t], expected.layers[0].wk[t]);
    expect_same(found.layers[2].w_down[t], expected.layers[2].w_down[t]);
    expect_same(found.layers[1].router[t], expected.layers[1].router[t]);
    expect_same(found.layers[1].expert_up[t], expected.layers[1].expert_up[t]);
  }
}

TEST_P(PackedFile, GivesPartsToRanksThatShareTracksAndTheHead) {
  for (const bool tied : {false, true}) {
    ModelConfig config = for_two_ranks();
    config.tie_embeddings = tied;
    write(config);
    const CpuOptions options{.threads = 2, .compute = int8() ? Compute::int8 : Compute::float32};
    for (const std::int64_t rank : {0, 1}) {
      const auto plain = make_cpu_backend(options), packed = make_cpu_backend(options);
      const HeadRows head{rank * 501, rank == 0 ? 501 : 502};
      const auto load = [&](const std::string& path, Backend& backend) {
        return all_weights(load_shard(ModelFile(path), 0, 2, backend, head, {.ranks = 2, .rank = rank}));
      };
      EXPECT_EQ(load(panels_, *packed), load(rows_, *plain)) << (tied ? "tied" : "");
      EXPECT_EQ(packed->weight_bytes(), plain->weight_bytes());
    }
  }
}

TEST_P(PackedFile, BecomesThePlainFileAgain) {
  write(many_pieces());
  rewrite(panels_, folder_ / "again.h5", WeightLayout::rows);
  std::ifstream first(rows_, std::ios::binary), second(folder_ / "again.h5", std::ios::binary);
  const std::string a{std::istreambuf_iterator<char>(first), {}},
      b{std::istreambuf_iterator<char>(second), {}};
  EXPECT_EQ(a.size(), b.size());
  EXPECT_TRUE(a == b);
}

TEST_P(PackedFile, TellsOfDamageWhereverItIs) {
  write(many_pieces());
  const CpuOptions options{.threads = 2, .compute = int8() ? Compute::int8 : Compute::float32};
  const auto backend = make_cpu_backend(options);
  ReferenceBackend reader;
  const std::string name = "/tracks/00/layers/000/w_down";
  const std::size_t bytes = ModelFile(panels_).stat({name, {210, 1001}, WeightRole::matrix}).bytes;
  for (const std::size_t at : {std::size_t{40}, bytes / 2, bytes - 1}) {
    flip_bit(panels_, name, at);
    for (Backend* taker : {&*backend, static_cast<Backend*>(&reader)})
      expect_words(message_of([&] { load_shard(ModelFile(panels_), 0, 1, *taker); }),
                   {"p.h5", name, "expected crc32c", "damaged"});
    flip_bit(panels_, name, at);
  }
  flip_bit(panels_, "/shared/embedding", 4097);
  expect_words(message_of([&] { load_shard(ModelFile(panels_), 0, 1, *backend); }),
               {"/shared/embedding", "crc32c"});
  flip_bit(panels_, "/shared/embedding", 4097);
  EXPECT_NO_THROW(load_shard(ModelFile(panels_), 0, 1, *backend));
}

INSTANTIATE_TEST_SUITE_P(Types, PackedFile,
                         testing::Values(DType::float32, DType::float16, DType::bfloat16, DType::int8),
                         [](const auto& p) { return std::string(to_string(p.param)); });

struct BadPanels {
  const char* what;
  std::function<void(const std::string& path)> damage;
  std::vector<std::string> words;
};

TEST(BadPackedFile, IsRefused) {
  using P = const std::string&;
  const std::string name = "/tracks/01/layers/002/wk";  // [12, 24]: one panel of 768 bytes in bfloat16
  const auto bytes = [&](P p, std::vector<std::int64_t> shape, std::size_t n, const char* layout,
                         const char* dtype) {
    replace_dataset(p, name, ForeignType::uint8, shape, std::vector<double>(n));
    set_fixed_string(p, name, "layout", layout);
    if (dtype != nullptr) set_fixed_string(p, name, "dtype", dtype);
  };
  const BadPanels cases[] = {
      {"cut short",
       [](P p) { std::filesystem::resize_file(p, std::filesystem::file_size(p) - 100); },
       {"p.h5", "truncated"}},
      {"half",
       [](P p) { std::filesystem::resize_file(p, std::filesystem::file_size(p) / 2); },
       {"p.h5", "truncated"}},
      {"of another version",
       [&](P p) {
         bytes(p, {1, 768}, 768, "panels16.v2", "bfloat16");
       },
       {name, "panels16.v2", "panels16.v1", "ptrt pack"}},
      {"no type",
       [&](P p) {
         bytes(p, {1, 768}, 768, kPanelLayoutName, nullptr);
       },
       {name, "dtype", "found none"}},
      {"unknown type",
       [&](P p) {
         bytes(p, {1, 768}, 768, kPanelLayoutName, "int4");
       },
       {name, "dtype", "int4"}},
      {"misshapen",
       [&](P p) {
         bytes(p, {1, 767}, 767, kPanelLayoutName, "bfloat16");
       },
       {name, "[1, 768]", "[1, 767]"}},
      {"not bytes",
       [&](P p) {
         replace_dataset(p, name, ForeignType::uint16, {1, 768}, std::vector<double>(768));
         set_fixed_string(p, name, "layout", kPanelLayoutName);
       },
       {name, "uint8", "found uint16"}},
      {"a vector",
       [](P p) { set_fixed_string(p, "/shared/final_norm", "layout", kPanelLayoutName); },
       {"/shared/final_norm", "products"}},
      {"an int8 router",
       [&](P p) {
         const std::string router = "/tracks/00/layers/001/router";
         replace_dataset(p, router, ForeignType::uint8, {1, 576}, std::vector<double>(576));
         set_fixed_string(p, router, "layout", kPanelLayoutName);
         set_fixed_string(p, router, "dtype", "int8");
       },
       {"router", "dtype", "int8"}},
      {"a bad scale",
       [&](P p) {
         replace_dataset(p, name, ForeignType::uint8, {1, 576}, std::vector<double>(576, 255));
         set_fixed_string(p, name, "layout", kPanelLayoutName);
         set_fixed_string(p, name, "dtype", "int8");
       },
       {name, "row 0, group 0", "scale"}},
  };
  for (const BadPanels& c : cases) {
    SCOPED_TRACE(c.what);
    TempFolder folder;
    write_model(folder / "m.h5", small_config(), 3, DType::bfloat16);
    rewrite(folder / "m.h5", folder / "p.h5", WeightLayout::panels);
    c.damage(folder / "p.h5");
    const auto backend = make_cpu_backend({.threads = 2});
    ReferenceBackend reader;
    for (Backend* taker : {&*backend, static_cast<Backend*>(&reader)})
      expect_words(message_of([&] { load_shard(ModelFile(folder / "p.h5"), 0, 2, *taker); }), c.words);
  }
}

struct BadScale {
  std::int64_t row, group;
  std::vector<std::string> words;
};

// In place, where the panels are mapped and only looked at. Rows of 210 columns: three pairs of groups and
// one without a partner.
TEST(BadPackedFile, ScalesOfMappedPanelsAreLookedAt) {
  const std::string name = "/tracks/00/layers/000/w_gate";
  const TensorSpec spec{name, {1001, 210}, WeightRole::matrix};
  const BadScale cases[] = {{37, 0, {"row 37, group 0", "inf"}},
                            {37, 3, {"row 37, group 3", "inf"}},
                            {37, 6, {"row 37, group 6", "inf"}},
                            {1000, 5, {"row 1000, group 5", "inf"}},
                            {1001, 5, {"beside the matrix", "from row 992 on", "not finite"}}};
  for (const BadScale& c : cases) {
    SCOPED_TRACE(testing::Message() << "row " << c.row << ", group " << c.group);
    TempFolder folder;
    const std::string panels = folder / "p.h5";
    write_int8_model(folder / "m.h5", many_pieces(), 8);
    rewrite(folder / "m.h5", panels, WeightLayout::panels);
    remove_attribute(panels, name, "crc32c");
    const StoredTensor stored = ModelFile(panels).stat(spec);
    ASSERT_EQ(stored.offset.value() % kMapAlignment, 0u) << "it would not be mapped";
    const std::int64_t panel = 3 * kGroupPair + kScaleLine + kGroupWords;
    ASSERT_EQ(stored.bytes, static_cast<std::size_t>(63 * panel));
    const auto backend = make_cpu_backend({.threads = 2, .compute = Compute::int8});
    EXPECT_NO_THROW(load_shard(ModelFile(panels), 0, 1, *backend));
    std::fstream file(panels, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::int64_t>(*stored.offset) + c.row / kPanelOuts * panel +
               c.group / 2 * kGroupPair + c.group % 2 * kGroupScales + c.row % kPanelOuts * 2);
    file.write("\x00\x7C", 2);
    file.close();
    const std::string message = message_of([&] { load_shard(ModelFile(panels), 0, 1, *backend); });
    expect_words(message, {"p.h5", name});
    expect_words(message, c.words);
  }
}

// The mapping stays when the file is closed, and what was there when it was mapped is there as long.
TEST(FileMaps, OutliveTheirFileAndKnowItsEnd) {
  TempFolder folder;
  std::ofstream(folder / "f") << std::string(5000, 'a') << "end";
  std::shared_ptr<const std::byte> bytes, part;
  {
    std::FILE* file = std::fopen((folder / "f").c_str(), "rb");
    FileMap map(::fileno(file), folder / "f");
    bytes = map.bytes(4096, 907, "/d");
    EXPECT_EQ(map.bytes(5003, 0, "/d").get(), bytes.get() + 907);
    part = map.part(4990, 13, "/d");
    expect_words(message_of([&] { map.part(4990, 14, "/d"); }), {"f", "truncated", "5003", "/d"});
    expect_words(message_of([&] { map.bytes(4096, 908, "/d"); }), {"f", "truncated", "5003", "/d"});
    expect_words(message_of([&] { map.bytes(5004, 0, "/d"); }), {"truncated"});
    std::fclose(file);
  }
  std::filesystem::remove(folder / "f");
  EXPECT_EQ(static_cast<char>(bytes.get()[904]), 'e');
  EXPECT_EQ(static_cast<char>(part.get()[0]), 'a');
  EXPECT_EQ(static_cast<char>(part.get()[12]), 'd');
}

TEST(FileMaps, AreNullWhereAFileCannotBeMapped) {
  TempFolder folder;
  const int descriptor = ::open(folder.path().c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_GE(descriptor, 0);
  FileMap map(descriptor, folder.path());
  EXPECT_EQ(map.bytes(0, 0, "/d"), nullptr);
  EXPECT_EQ(map.bytes(0, 0, "/d"), nullptr);
  EXPECT_EQ(map.part(0, 0, "/d"), nullptr);
  ::close(descriptor);
}

// Lets the process take so many more bytes of addresses, as long as this lives.
class AddressLimit {
 public:
  explicit AddressLimit(rlim_t more) {
    std::ifstream file("/proc/self/statm");
    rlim_t pages = 0;
    file >> pages;
    EXPECT_EQ(::getrlimit(RLIMIT_AS, &before_), 0);
    rlimit limit = before_;
    limit.rlim_cur = pages * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE)) + more;
    EXPECT_EQ(::setrlimit(RLIMIT_AS, &limit), 0);
  }
  ~AddressLimit() { ::setrlimit(RLIMIT_AS, &before_); }

 private:
  rlimit before_{};
};

// The file is too long for the addresses that are left, though nearly all of it is a hole.
TEST(FileMaps, ThatCannotBeAreReadInstead) {
  TempFolder folder;
  const std::string rows = folder / "m.h5", panels = folder / "p.h5";
  write_model(rows, many_pieces(), 8, DType::bfloat16);
  rewrite(rows, panels, WeightLayout::panels);
  std::filesystem::resize_file(panels, std::uintmax_t{1} << 40);
  const auto plain = make_cpu_backend({.threads = 2}), packed = make_cpu_backend({.threads = 2});
  const auto expected = all_weights(load_shard(ModelFile(rows), 0, 1, *plain));
  {
    const AddressLimit limit(rlim_t{4} << 30);
    EXPECT_EQ(all_weights(load_shard(ModelFile(panels), 0, 1, *packed)), expected);
  }
  EXPECT_EQ(packed->mapped_bytes(), plain->mapped_bytes());  // the token table, for which there is room
}

}  // namespace
}  // namespace ptrt
