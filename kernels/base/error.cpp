#include "kernels/base/error.h"

#include <exception>
#include <filesystem>
#include <new>
#include <system_error>

namespace ptrt {

Error current_error() {
  try {
    throw;
  } catch (const Error& e) {
    return e;
  } catch (const std::bad_alloc&) {
    return {ExitCode::failure, "out of memory: the system gave no more"};
  } catch (const std::filesystem::filesystem_error& e) {
    return {ExitCode::failure, fmt::format("{}: {}", e.path1().string(), e.code().message())};
  } catch (const std::system_error& e) {
    return {ExitCode::failure, e.code().message()};
  } catch (const std::exception& e) {
    return {ExitCode::failure, fmt::format("internal error: {}", e.what())};
  } catch (...) {
    return {ExitCode::failure, "internal error"};
  }
}

}  // namespace ptrt
