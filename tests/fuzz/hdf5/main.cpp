// hdf5_fuzz CORPUS [--mutants N] [--seed S] [--flips all|some|none] [--json FILE]: changes sound model files, and probes
// and loads each in processes of their own. A mutant is refused with a message, or reads as the library alone
// reads it, and, where only bytes outside of the datasets changed, as its seed. Exit status 1 where one does not.
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "judge.h"
#include "mutations.h"

namespace ptrt {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string corpus, json;
  std::int64_t mutants = 3000;
  std::uint64_t seed = 1;
  std::size_t flip_stride = 211;  // of the bits outside of datasets every so many is flipped; 0: none
};

void write_file(const std::string& path, const std::vector<std::uint8_t>& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

class Campaign {
 public:
  explicit Campaign(const Options& options) : options_(options), random_(options.seed) {
    // In memory where it can be: a file system on a disk may flush each mutant.
    folder_ = std::string(fs::is_directory("/dev/shm") ? "/dev/shm" : "/tmp") + "/ptrt-hdf5-fuzz-XXXXXX";
    if (::mkdtemp(folder_.data()) == nullptr) throw std::runtime_error("no temporary folder");
    seeds_ = make_seeds(folder_, options.corpus);
  }
  ~Campaign() { fs::remove_all(folder_); }

  int run() {
    for (std::int64_t i = 0; i < options_.mutants; ++i) run_mutant(pick_seed());
    flip_bits();
    report();
    return faults_ == 0 ? 0 : 1;
  }

 private:
  // Rarely a damaged one: most of its mutants take all of the probe's time.
  const Seed& pick_seed() {
    for (;;) {
      const Seed& seed = seeds_[random_() % seeds_.size()];
      if (!seed.content.tensors.empty() || random_() % 50 == 0) return seed;
    }
  }

  // The folder of a seed holds its sound files except while one of them is changed.
  void run_mutant(const Seed& seed) {
    const std::size_t file = random_() % seed.files.size();
    ObjectChange change{"bytes"};
    const bool object = !seed.content.tensors.empty() && random_() % 10 == 0;
    if (object) change = change_object(seed.files[file], seed.content, random_);
    const bool bytes = !object || random_() % 4 == 0;
    std::vector<std::uint8_t> mutant = seed.bytes[file];
    if (bytes) {
      if (object) mutant = bytes_of(seed.files[file]);
      change_bytes(mutant, seed.datasets[file], random_);
      write_file(seed.files[file], mutant);
    }
    const Judgement found = judge(seed.files[0], seed.content);
    count(object ? "objects" : "bytes", found.outcome);
    const bool refused = found.outcome <= Outcome::hang_refused;
    const bool fault = found.outcome >= Outcome::load_crashed || (change.forbidden && !bytes && !refused) ||
                       (found.outcome == Outcome::other_content && !object && !seed.content.tensors.empty());
    if (fault) note_fault(seed, file, change.what, found);
    for (std::size_t i = 0; i < seed.files.size(); ++i)  // links may have led a change to another file
      if (object || i == file) write_file(seed.files[i], seed.bytes[i]);
  }

  // Of the bytes outside of the datasets, all bits or some.
  void flip_bits() {
    for (const Seed& seed : seeds_) {
      if (options_.flip_stride == 0 || (seed.name != "float32" && seed.name != "foreign")) continue;
      std::vector<std::uint8_t> mutant = seed.bytes[0];
      const std::size_t stride = options_.flip_stride;
      for (std::size_t bit = options_.seed % stride; bit < 8 * mutant.size(); bit += stride) {
        const bool inside = std::ranges::any_of(seed.datasets[0], [&](const auto& range) {
          return bit / 8 >= range.first && bit / 8 < range.second;
        });
        if (inside) continue;
        mutant[bit / 8] ^= static_cast<std::uint8_t>(1U << (bit % 8));
        write_file(seed.files[0], mutant);
        const Judgement found = judge(seed.files[0], seed.content);
        count("flips_" + seed.name, found.outcome);
        // The configuration of a file without checksums of its metadata is what it says.
        const bool fault = found.outcome > Outcome::other_config ||
                           (found.outcome == Outcome::other_config && seed.name == "float32");
        if (fault) note_fault(seed, 0, fmt::format("bit {}", bit), found);
        mutant[bit / 8] ^= static_cast<std::uint8_t>(1U << (bit % 8));
      }
      write_file(seed.files[0], seed.bytes[0]);
    }
  }

  static std::vector<std::uint8_t> bytes_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  void count(const std::string& kind, Outcome outcome) {
    counts_[kind][to_string(outcome)]++;
    total_++;
  }

  void note_fault(const Seed& seed, std::size_t file, const std::string& what, const Judgement& found) {
    faults_++;
    fmt::print("FAULT {}: {} ({}): {}\n", seed.name, to_string(found.outcome), what, found.message);
    if (faults_ > 20) return;
    const std::string kept = fmt::format("hdf5_fault_{}_{}.h5", seed.name, faults_);
    std::error_code error;
    fs::copy_file(seed.files[file], kept, fs::copy_options::overwrite_existing, error);
    if (!error) fmt::print("  kept as {}\n", kept);
    std::fflush(stdout);
  }

  void report() {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    nlohmann::ordered_json result{{"executions", total_},
                                  {"seed", options_.seed},
                                  {"faults", faults_},
                                  {"seconds", std::round(seconds)},
                                  {"per_second", std::round(static_cast<double>(total_) / seconds)}};
    for (const auto& [kind, outcomes] : counts_)
      for (const auto& [outcome, number] : outcomes) result["counts"][kind][outcome] = number;
    fmt::print("{}\n", result.dump(2));
    if (!options_.json.empty()) std::ofstream(options_.json) << result.dump(2) << '\n';
  }

  const Options& options_;
  Random random_;
  std::string folder_;
  std::vector<Seed> seeds_;
  std::map<std::string, std::map<std::string, std::int64_t>> counts_;
  std::int64_t total_ = 0, faults_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

Options parse(int argc, char** argv) {
  Options options;
  options.corpus = argc > 1 ? argv[1] : ".";
  for (int i = 2; i + 1 < argc; i += 2) {
    const std::string name = argv[i], value = argv[i + 1];
    if (name == "--mutants") options.mutants = std::stoll(value);
    if (name == "--seed") options.seed = std::stoull(value);
    if (name == "--flips") options.flip_stride = value == "all" ? 1 : value == "none" ? 0 : 211;
    if (name == "--json") options.json = value;
  }
  return options;
}

}  // namespace
}  // namespace ptrt

int main(int argc, char** argv) {
  const ptrt::Options options = ptrt::parse(argc, argv);
  return ptrt::Campaign(options).run();
}
