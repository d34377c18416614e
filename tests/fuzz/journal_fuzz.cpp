// A journal, or the note or the record of a shard beside finished results, that something else has changed: refused
// and left as it is, or the results come out as they went in. The input is a list of changes of four bytes each, since
// its bytes alone would hardly ever be a journal. A record may get the checksum of what it has become: it must then
// make sense.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "driver/target.h"
#include "kernels/base/error.h"
#include "runtime/journal/finished_run.h"
#include "runtime/journal/journal.h"
#include "runtime/journal/journal_format.h"
#include "runtime/journal/shard_record.h"

namespace ptrt::fuzz {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kRequests = 5;
constexpr std::size_t kMaxChanges = 8;
const char* const kDigest = "0123456789abcdef";

std::string result_of(std::int64_t line) {
  return fmt::format(R"({{"id":"{}","text":"line \n{}","tokens":[{},7],"finish_reason":"stop"}})", line,
                     std::string(static_cast<std::size_t>(line), '}'), line * 1000);
}

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_file(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// Where results, journal and note are, in memory if the system has such a folder.
class Folder {
 public:
  Folder() {
    std::string name =
        (fs::exists("/dev/shm") ? "/dev/shm" : fs::temp_directory_path().string()) + "/fuzzXXXXXX";
    expect(mkdtemp(name.data()) != nullptr, "cannot make a folder {}", name);
    results_ = name + "/r.jsonl";
  }
  ~Folder() { fs::remove_all(fs::path(results_).parent_path()); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  const std::string& results() const { return results_; }
  void clear() const {
    for (const std::string& path :
         {results_, journal_path(results_), finished_path(results_), shard_record_path(results_)})
      fs::remove(path);
  }

 private:
  std::string results_;
};

const ShardRecord kRecord{.batch = {"generate-0123", 0x123456789abcdef0},
                          .shard = {1, 3},
                          .file_lines = 16,
                          .lines = {{1, 2}, {7, 3}},
                          .kv_tokens = 4096,
                          .kv_cache_exceeded = {4, 13},
                          .most_tokens = 4000,
                          .bytes = 1000,
                          .results_crc32c = 0x89abcdef};

// What a run writes: the journal with four of its five results, the results, and note and record beside them.
struct Written {
  std::string journal, results, note, record;

  explicit Written(const Folder& folder) {
    Journal run(folder.results(), kDigest, kRequests, false);
    for (const std::int64_t line : {3, 0, 4, 1}) run.append(line, result_of(line));
    journal = read_file(journal_path(folder.results()));
    run.append(2, result_of(2));
    run.publish();
    results = read_file(folder.results());
    note = read_file(finished_path(folder.results()));
    write_shard_record(folder.results(), kRecord);
    record = read_file(shard_record_path(folder.results()));
  }
};

void change(std::string& text, const unsigned char* bytes) {
  if (text.empty()) return;
  const std::size_t at = (bytes[1] * 256u + bytes[2]) % text.size(), more = bytes[3];
  const std::size_t length = std::min(more + 1, text.size() - at);
  switch (bytes[0] % 9) {
    case 0:
      text[at] = static_cast<char>(text[at] ^ (1 << more % 8));
      break;
    case 1:
      text[at] = "\0\r\n 09}\""[more % 8];
      break;
    case 2:
      text.erase(at, length);
      break;
    case 3:
      text.insert(at, text.substr(at, length));
      break;
    case 4:
      text.resize(at);
      break;
    case 5:
      text += text.substr(at);
      break;
    case 6:
      text.insert(more % text.size(), text.substr(at, 64));
      break;
    case 7:
      text.replace(at, length, std::string(length, '\0'));
      break;
    default:  // as through a program that gives lines another end
      for (std::size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', end + 2))
        text.insert(end, 1, '\r');
  }
}

void check_refusal(const Error& error, const std::string& path, const std::string& before) {
  expect(error.code() == ExitCode::bad_input, "exit status {}: {}", static_cast<int>(error.code()),
         error.what());
  expect(read_file(path) == before, "the file is another one after: {}", error.what());
}

void check_journal(const Folder& folder, const Written& written, const std::string& journal) {
  write_file(journal_path(folder.results()), journal);
  try {
    Journal run(folder.results(), kDigest, kRequests, true);
    std::int64_t count = 0;
    for (std::int64_t line = 0; line < kRequests; ++line) count += run.has(line);
    expect(count == run.count(), "{} results are {}", count, run.count());
    for (std::int64_t line = 0; line < kRequests; ++line)
      if (!run.has(line)) run.append(line, result_of(line));
    run.publish();
  } catch (const Error& error) {
    return check_refusal(error, journal_path(folder.results()), journal);
  }
  expect(read_file(folder.results()) == written.results, "the results are not those that were given");
  expect(is_finished(folder.results(), kDigest, kRequests), "the published results are not finished");
}

void check_finished(const Folder& folder, const Written& written, const std::string& results,
                    const std::string& note) {
  write_file(folder.results(), results);
  write_file(finished_path(folder.results()), note);
  try {
    expect(is_finished(folder.results(), kDigest, kRequests), "the results are there, and are not finished");
  } catch (const Error& error) {
    check_refusal(error, finished_path(folder.results()), note);
    return check_refusal(error, folder.results(), results);
  }
  expect(results == written.results && note == written.note, "changed results are taken for finished ones");
}

void check_record(const Folder& folder, const Written& written, const std::string& record) {
  const std::string path = shard_record_path(folder.results());
  write_file(path, record);
  try {
    expect(read_shard_record(folder.results()) == kRecord, "the record is another one");
  } catch (const Error& error) {
    return check_refusal(error, path, record);
  }
  expect(record == written.record, "a changed record is taken for one that was written");
}

void check_summed_record(const Folder& folder, std::string record) {
  const std::size_t end = record.rfind(",\"crc32c\":\"");
  if (end == std::string::npos) return;
  const std::string body = record.substr(0, end);
  record = fmt::format("{},\"crc32c\":\"{}\"}}\n", body, checksum_text(checksum_of(body)));
  const std::string path = shard_record_path(folder.results());
  write_file(path, record);
  try {
    const auto read = read_shard_record(folder.results());
    const Shard& shard = read->shard;
    expect(shard.index >= 0 && shard.index < shard.count, "shard {} of {}", shard.index, shard.count);
    expect(read->results() == shard.lines_of(read->file_lines), "{} lines", read->results());
  } catch (const Error& error) {
    check_refusal(error, path, record);
  }
}

}  // namespace

void run_input(std::string_view input) {
  static const Folder folder;
  static const Written written(folder);
  folder.clear();
  if (input.empty()) return;
  std::string journal = written.journal, results = written.results, note = written.note,
              record = written.record;
  const int kind = static_cast<unsigned char>(input[0]) % 8;
  std::string& changed = kind == 7 ? record : kind % 4 == 0 ? note : kind % 4 == 1 ? results : journal;
  for (std::size_t i = 0; i < kMaxChanges && 5 + 4 * i <= input.size(); ++i)
    change(changed, reinterpret_cast<const unsigned char*>(input.data()) + 1 + 4 * i);
  if (&changed == &journal)
    check_journal(folder, written, journal);
  else if (&changed == &record)
    static_cast<unsigned char>(input[0]) < 128 ? check_record(folder, written, record)
                                               : check_summed_record(folder, record);
  else
    check_finished(folder, written, results, note);
}

std::string mutate_input(std::string input, Random& random) {
  return mutate_bytes(std::move(input), random);
}

}  // namespace ptrt::fuzz
