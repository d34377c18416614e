// The functions that run the subcommands of `ptrt`. All throw ptrt::Error.
#pragma once

#include <memory>

#include "launch/options/command_options.h"
#include "model_io/file/model_probe.h"

namespace ptrt {

class JobComm;

// Starts a process that reads the metadata of the command's model; null where it opens none, or where
// another rank of this host does it. Call before MPI starts.
std::unique_ptr<ModelProbe> start_probe(const Command& command);
// The same whatever rank this is.
std::unique_ptr<ModelProbe> start_own_probe(const Command& command);

// Of a model's files `known` is what a probe of this process read; null where it started none.
// Collective.
void run_batch(const BatchOptions& options, JobComm& job, const ModelMetadata* known);
void run_score_text(const BatchOptions& options, JobComm& job, const ModelMetadata* known);
// Looks at the launch from all ranks, prints a table and a verdict; throws failure where a job would fail. `probe`: of
// every rank, null without a model.
void run_doctor(const DoctorOptions& options, JobComm& job, ModelProbe* probe);
void run_bench(const BenchOptions& options, JobComm& job, const ModelMetadata* known);
// On one rank.
void run_merge(const MergeOptions& options);
void run_plan(const PlanOptions& options);

}  // namespace ptrt
