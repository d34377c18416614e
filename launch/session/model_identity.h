// The identity of a run's model: a digest of its content and of what its numbers depend on.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "kernels/backend.h"
#include "launch/options/run_options.h"
#include "launch/session/model_source.h"
#include "launch/session/run_plan.h"
#include "model_io/shard/model_content.h"
#include "runtime/comm/track_comm.h"

namespace ptrt {

// Compares what the ranks' files record of each dataset that several ranks have, before anything is loaded.
// The digests of the whole model where each of its datasets has a checksum; none elsewhere. Collective; errors
// are agreed on.
std::optional<ContentDigests> agree_on_recorded(JobComm& job, const ModelFile& file,
                                                const Placement& placement);

// Compares what the ranks have read with each other and with the recorded checksums. Collective; errors are
// agreed on. `contents` are this rank's, of a model that is loaded by the whole job.
ContentDigests agree_on_content(JobComm& job, const ModelFile& file, const Placement& placement,
                                std::span<const DatasetContent> contents);

// Equal for runs whose results are the same for the same requests.
std::string model_digest(const ModelRunOptions& options, const ModelSource& model, const RunPlan& plan,
                         const Backend& backend, const ContentDigests& content);

}  // namespace ptrt
