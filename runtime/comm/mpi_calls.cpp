#include "runtime/comm/mpi_calls.h"

#include <climits>
#include <string>

#include "kernels/base/error.h"

namespace ptrt {

void check_mpi(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw_failure("{} failed: {}", call, std::string(text, static_cast<std::size_t>(length)));
}

int to_mpi_count(std::size_t bytes) {
  if (bytes > INT_MAX) throw_failure("a message of {} bytes is larger than MPI's counts allow", bytes);
  return static_cast<int>(bytes);
}

}  // namespace ptrt
