// Which process of a host probes the model file before any rank opens it.
#include <cstdlib>
#include <string_view>

#include "launch/commands/commands.h"

namespace ptrt {
namespace {

struct ModelAccess {
  std::string path;  // empty: none
  bool trust_links = false;
};

ModelAccess model_of(const Command& command) {
  if (const auto* batch = std::get_if<BatchOptions>(&command))
    return {batch->run.model, batch->run.trust_links};
  if (const auto* doctor = std::get_if<DoctorOptions>(&command))
    return {doctor->run.model, doctor->run.trust_links};
  if (const auto* bench = std::get_if<BenchOptions>(&command))
    return {bench->run.model, bench->run.trust_links};
  if (const auto* quantize = std::get_if<QuantizeOptions>(&command))
    return {quantize->model, quantize->trust_links};
  if (const auto* pack = std::get_if<PackOptions>(&command)) return {pack->model, pack->trust_links};
  if (const auto* inspect = std::get_if<InspectOptions>(&command))
    return {inspect->model, inspect->trust_links};
  return {};
}

// Every process where no launcher numbers those of a host. Launchers run one inside the other, so Slurm's
// number, which a batch script has too, comes last.
bool is_first_of_host() {
  for (const char* name : {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK",
                           "PALS_LOCAL_RANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID"})
    if (const char* value = std::getenv(name)) return std::string_view(value) == "0";
  return true;
}

}  // namespace

std::unique_ptr<ModelProbe> start_own_probe(const Command& command) {
  const ModelAccess model = model_of(command);
  if (model.path.empty()) return nullptr;
  return std::make_unique<ModelProbe>(model.path, model.trust_links);
}

std::unique_ptr<ModelProbe> start_probe(const Command& command) {
  // The doctor asks each rank what it sees.
  const bool mine = is_first_of_host() || std::holds_alternative<DoctorOptions>(command);
  return mine ? start_own_probe(command) : nullptr;
}

}  // namespace ptrt
