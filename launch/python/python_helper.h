// The one Python process of a run, on rank 0, which answers JSON lines (helper_start.py): each begins with a number,
// that of the question. It starts with the first
// question. One that takes too long or dies is started anew with the next.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "kernels/base/error.h"
#include "kernels/base/file_descriptor.h"

namespace ptrt {

// Why there is no answer. It becomes the error line of the request that asked.
struct HelperError {
  std::string code;
  std::string message;
};

// The run is to stop: there is no answer, and no error line either.
class HelperStopped : public Error {
 public:
  HelperStopped() : Error(ExitCode::stopped, "stopped by a signal: continue with --resume") {}
};

class PythonHelper {
 public:
  struct Limits {
    double start_s = 60;                                // of waiting for it to start
    double processor_s = 5;                             // that one answer may take
    double answer_s = 60;                               // of waiting for an answer, on a busy host
    std::size_t answer_bytes = std::size_t{64} << 20;   // of an answer
    std::int64_t memory_bytes = std::int64_t{2} << 30;  // of the process
  };

  PythonHelper() : PythonHelper(Limits()) {}
  // `stop_requested`, which may be empty, is asked while an answer is waited for.
  explicit PythonHelper(Limits limits, std::function<bool()> stop_requested = {});
  ~PythonHelper();
  PythonHelper(const PythonHelper&) = delete;
  PythonHelper& operator=(const PythonHelper&) = delete;

  // For messages: what is asked for ("the chat template"), and the codes of errors.
  struct Purpose {
    const char* what;
    const char* failed;       // it takes too much processor time, grows too large, or ends the process
    const char* unavailable;  // for reasons of the host; see is_error_of_host()
  };

  // The answer to a question, both a JSON object without line breaks. Throws HelperError, and HelperStopped. One thread at a time.
  std::string ask(std::string_view question, const Purpose& purpose);

  pid_t pid() const { return pid_; }  // -1: it does not run

 private:
  // Why an answer did not come.
  enum class Silence : std::uint8_t { ended, late, too_long, other };

  void start(const Purpose& purpose);
  bool exchange(std::string_view question, const Purpose& purpose, std::string& answer, Silence& silence);
  bool send(std::string_view text, double seconds, Silence& silence);
  bool receive(std::string& line, double seconds, Silence& silence);
  int end(bool ended = false);  // returns its status

  Limits limits_;
  std::function<bool()> stop_requested_;
  FileDescriptor socket_;    // its standard input, on which it answers too
  std::uint64_t asked_ = 0;  // the number of the last question, which its answer has to begin with
  pid_t pid_ = -1;
};

}  // namespace ptrt
