#include "runtime/job/reporter.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>

#include "runtime/job/launcher.h"

namespace ptrt {

// A name in the system's table of abstract sockets: one process at a time can have it, and it is free again when that
// process has ended, however it did. The socket is left open for that reason.
bool first_to_report_here(const std::string& job) {
  const std::string name = fmt::format("ptrt.report.{}.{}", getuid(), job);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  const std::size_t length = std::min(name.size(), sizeof address.sun_path - 1);
  std::copy_n(name.begin(), length, address.sun_path + 1);  // the first byte is 0: abstract
  const int file = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (file < 0) return true;
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
  if (bind(file, reinterpret_cast<const sockaddr*>(&address), size) == 0) return true;
  const bool taken = errno == EADDRINUSE;
  close(file);
  return !taken;
}

bool first_to_report_here() {
  return !started_by_mpi_launcher() || first_to_report_here(launched_job());
}

}  // namespace ptrt
