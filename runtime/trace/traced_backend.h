// A backend that records the time of each op of another. On a device that runs ahead these are the times in which
// the host queues the ops.
#pragma once

#include <memory>

#include "kernels/backend.h"
#include "runtime/trace/tracer.h"

namespace ptrt {

// Both outlive it.
std::unique_ptr<Backend> make_traced_backend(Backend& inner, Tracer& tracer);

}  // namespace ptrt
