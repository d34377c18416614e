// The commands that write and show model files. All throw ptrt::Error and run on one rank.
#pragma once

#include "launch/options/command_options.h"
#include "model_io/file/model_probe.h"

namespace ptrt {

// Of a model's files `known` is what a probe of this process read; null where it started none.
void run_init(const InitOptions& options);
void run_quantize(const QuantizeOptions& options, const ModelMetadata* known);
void run_pack(const PackOptions& options, const ModelMetadata* known);
void run_inspect(const InspectOptions& options, const ModelMetadata* known);

}  // namespace ptrt
