// Files that a command writes: one that appears under its name only when it is whole, and the check
// that none of them is a file that the command reads.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace ptrt {

// Creates an empty file beside `path` under a name that no file had, "PATH.XXXXXXXX.tmp", and returns
// that name. What is there already is never opened, followed or replaced. Throws bad_input.
std::string create_temporary_beside(const std::string& path);

// Writes all the data of a temporary file to disk and gives it the name `path`. Throws failure; the
// temporary file then stays.
void publish_temporary(const std::string& temporary, const std::string& path);

// Removes a temporary file that is not to be published.
void remove_temporary(const std::string& temporary);

// From now on a SIGINT, SIGTERM or SIGHUP that ends this process first removes its temporary files. For
// commands that do not handle these signals themselves.
void remove_temporaries_on_signals();

// The file that a chain of symbolic links at `path` ends at, whether or not it exists; else `path`.
// A temporary file beside it takes its place without harm to the links.
std::string behind_links(const std::string& path);

// Throws bad_input if a file cannot be written there: no such folder, no permission, a directory. So a
// long run says it at its start. Leaves nothing behind.
void check_writable(const std::string& path);

// A new content for the file `path`. It has a temporary name until publish(); if that is not called,
// `path` is as before. A symbolic link at `path` stays, and the file it points at is replaced. A
// device, a pipe or a descriptor of this process (/dev/stdout) is written directly.
class OutputFile {
 public:
  // Throws bad_input if it cannot be created.
  explicit OutputFile(const std::string& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(std::string_view text);  // throws failure, e.g. on a full disk
  void publish();                     // throws failure
  // Instead of publish(): the file stays under its temporary name, which is returned; empty where it has none.
  std::string keep();

 private:
  std::string path_;       // behind links
  std::string temporary_;  // empty: `path` is written directly, or has been published
  int descriptor_ = -1;
};

// A file on the command line, and what messages call it: {"-o", "results.jsonl"}, {"the requests", …}.
struct NamedFile {
  std::string label, path;
};

// Whether both names lead to one file, by any links; of names without a file, whether they would.
// Devices and pipes are never the same file: nothing in them can be lost.
bool is_same_file(const std::string& a, const std::string& b);

// Throws bad_input if an output is the same file as an input or as another output. Empty paths are
// options that were not given.
void check_outputs(std::span<const NamedFile> outputs, std::span<const NamedFile> inputs);

}  // namespace ptrt
