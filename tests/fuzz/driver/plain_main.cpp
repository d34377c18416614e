// Runs a target where there is no libFuzzer: every file of the corpus, then so many inputs changed at random.
//
//   TARGET [-runs=N] [-seed=S] [-max_len=BYTES] [-timeout=SECONDS] [CORPUS_FOLDER | FILE]...
//
// An input that fails, crashes or takes longer than the timeout is written to ./crash-TARGET; the exit status is then
// not 0.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "driver/byte_mutator.h"
#include "driver/target.h"

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __sanitizer_set_death_callback(void (*callback)());
#endif

namespace ptrt::fuzz {
namespace {

constexpr std::size_t kMaxPool = 4096;

std::string g_input, g_crash_file;

// Also in signal handlers: system calls only.
void write_crash_file() {
  const int file = open(g_crash_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
  if (file < 0) return;
  const ssize_t written = write(file, g_input.data(), g_input.size());
  close(file);
  constexpr char kMessage[] = "the input is in the file crash-TARGET of this directory\n";
  if (written >= 0 && write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1) < 0) _exit(3);
}

void end_on_signal(int signal) {
  if (signal == SIGALRM) {
    constexpr char kMessage[] = "wrong: the input took longer than the timeout\n";
    if (write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1) < 0) _exit(3);
  }
  write_crash_file();
  _exit(128 + signal);
}

struct Options {
  std::size_t runs = 0, max_length = 4096;
  std::uint64_t seed = 1;
  unsigned timeout_s = 10;
  std::vector<std::string> inputs;
};

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

Options parse_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const std::size_t equals = std::min(word.find('='), word.size());
    const std::string key = word.substr(0, equals);
    const char* value = argv[i] + std::min(equals + 1, word.size());
    if (key == "-runs")
      options.runs = std::strtoull(value, nullptr, 10);
    else if (key == "-seed")
      options.seed = std::strtoull(value, nullptr, 10);
    else if (key == "-max_len")
      options.max_length = std::strtoull(value, nullptr, 10);
    else if (key == "-timeout")
      options.timeout_s = static_cast<unsigned>(std::strtoul(value, nullptr, 10));
    else if (std::filesystem::is_directory(word))
      for (const auto& entry : std::filesystem::directory_iterator(word))
        options.inputs.push_back(read_file(entry.path()));
    else if (std::filesystem::is_regular_file(word))
      options.inputs.push_back(read_file(word));
    else
      fail(fmt::format("unknown option, or no file or folder: {}", word));
  }
  std::ranges::sort(options.inputs);  // folders list files in any order
  return options;
}

void run(const std::string& input, const Options& options) {
  g_input = input;
  alarm(options.timeout_s);
  run_input(g_input);
  alarm(0);
}

void run_all(Options options) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::string> pool = options.inputs;
  for (const std::string& input : pool) run(input, options);
  if (pool.empty()) pool.emplace_back();
  // Changed inputs are changed again; those of the corpus stay.
  const std::size_t kept = pool.size();
  Random random(options.seed);
  for (std::size_t done = 0; done < options.runs; ++done) {
    std::string input = mutate_input(pool[random.below(random.one_in(2) ? kept : pool.size())], random);
    input.resize(std::min(input.size(), options.max_length));
    run(input, options);
    if (pool.size() < kMaxPool)
      pool.push_back(std::move(input));
    else
      pool[kept + random.below(pool.size() - kept)] = std::move(input);
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%zu of the corpus, %zu changed inputs, %.1f s: nothing wrong\n", options.inputs.size(),
              options.runs, seconds);
}

}  // namespace

std::string mutate_bytes(std::string input, Random& random) {
  return change_bytes(std::move(input), random);
}

void fail(const std::string& what) {
  std::fprintf(stderr, "wrong: %s\n", what.c_str());
  std::abort();
}

}  // namespace ptrt::fuzz

int main(int argc, char** argv) {
  using namespace ptrt::fuzz;
  g_crash_file = "crash-" + std::filesystem::path(argv[0]).filename().string();
  for (const int signal : {SIGABRT, SIGALRM, SIGTERM}) std::signal(signal, end_on_signal);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_set_death_callback(write_crash_file);
#else
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) std::signal(signal, end_on_signal);
#endif
  try {
    run_all(parse_options(argc, argv));
  } catch (const std::exception& e) {
    fail(fmt::format("an exception: {}", e.what()));
  }
}
