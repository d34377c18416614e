// Reads the metadata of a model file in a process of its own, before this one does: the HDF5 library may
// crash or loop for ever on a damaged file, and there it takes nothing along.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <string>

#include "model_io/file/model_metadata.h"

namespace ptrt {

struct ProbeLimits {
  double cpu_seconds = 5;                           // and 5 ms for each tensor
  std::size_t memory_bytes = std::size_t{1} << 30;  // beyond what this process has
};

class ModelProbe {
 public:
  // Starts it. Call where this process has one thread. Throws failure where there can be no other process.
  ModelProbe(std::string path, bool trust_links, ProbeLimits limits = {});
  ~ModelProbe();  // ends it
  ModelProbe(const ModelProbe&) = delete;
  ModelProbe& operator=(const ModelProbe&) = delete;

  // Waits for its end and gives what it read; once. Throws the error that it met, or bad_input where it did
  // not end in order.
  ModelMetadata finish();

 private:
  std::string path_;
  ProbeLimits limits_;
  pid_t process_ = -1;
  int verdict_ = -1;  // end of a pipe
};

}  // namespace ptrt
