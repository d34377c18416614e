// What another program writes, read by a thread of its own: who takes it need not wait for the writer.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "kernels/base/file_descriptor.h"
#include "launch/streams/byte_input.h"
#include "launch/streams/compression.h"

namespace ptrt {

class ReadAhead final : public ByteInput {
 public:
  // `name` is for messages. Some MiB are read ahead of what is taken.
  ReadAhead(FileDescriptor stream, std::string name, Compression compression);
  // Does not wait for the writer.
  ~ReadAhead() override;

  std::size_t read(char* to, std::size_t bytes) override;
  bool ready() override;

 private:
  void work(std::unique_ptr<ByteInput> input);

  FileDescriptor stream_;
  std::atomic<bool> ended_ = false;  // no more is wanted
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::string> pieces_;
  std::size_t taken_ = 0;  // of the first piece
  bool at_end_ = false;
  std::exception_ptr error_;
  std::thread thread_;
};

}  // namespace ptrt
