#include "kernels/base/error.h"

#include <exception>
#include <filesystem>
#include <new>
#include <system_error>

namespace ptrt {
namespace {

// A library may begin with its own name of the error: "[json.exception.type_error.302] type must be …".
std::string plain(std::string reason) {
  if (const std::size_t end = reason.find("] "); reason.starts_with('[') && end != std::string::npos)
    reason.erase(0, end + 2);
  return reason;
}

}  // namespace

Error current_error() {
  try {
    throw;
  } catch (const Error& e) {
    return e;
  } catch (const std::bad_alloc&) {
    return {ExitCode::failure, "out of memory: the system gave no more"};
  } catch (const std::length_error&) {
    return {ExitCode::failure, "out of memory: a size is beyond what memory can hold"};
  } catch (const std::filesystem::filesystem_error& e) {
    return {ExitCode::failure, fmt::format("{}: {}", e.path1().string(), e.code().message())};
  } catch (const std::system_error& e) {
    return {ExitCode::failure, e.code().message()};
  } catch (const std::exception& e) {
    return {ExitCode::failure, fmt::format("internal error: {}", plain(e.what()))};
  } catch (...) {
    return {ExitCode::failure, "internal error"};
  }
}

}  // namespace ptrt
