// --trace: what every rank recorded, in one file of Chrome's trace format, which Perfetto and chrome://tracing open.
// A rank is a process there, its threads are threads, and all times are of rank 0's clock.
#pragma once

#include <memory>
#include <string>

#include "runtime/comm/track_comm.h"
#include "runtime/trace/tracer.h"

namespace ptrt {

class TraceFile {
 public:
  // Compares the ranks' clocks. Collective. With more ranks each keeps fewer events.
  TraceFile(JobComm& job, std::string path);

  Tracer& tracer() { return tracer_; }
  // Compares the clocks again, gathers the events and writes the file on rank 0. A file that cannot be written is
  // told and ends nothing. Collective; after the last event. `name`: of this rank, for people.
  void write(const std::string& name);

 private:
  // What rank 0's clock shows minus what this one does, at a time of this one.
  struct Offset {
    std::int64_t at_ns = 0, ns = 0;
  };
  Offset compare_clocks() const;
  std::string events_json(const std::string& name, const Offset& end) const;

  JobComm& job_;
  std::string path_;
  Tracer tracer_;
  std::int64_t zero_ns_;  // of rank 0's clock: where the trace begins
  Offset start_;
};

}  // namespace ptrt
