// The only user of hwloc.
#include "kernels/base/host_cores.h"

#include <hwloc.h>

#include <fstream>
#include <map>
#include <memory>
#include <thread>

namespace ptrt {
namespace {

using Topology = std::unique_ptr<hwloc_topology, decltype(&hwloc_topology_destroy)>;
using Bitmap = std::unique_ptr<hwloc_bitmap_s, decltype(&hwloc_bitmap_free)>;

Bitmap make_bitmap() {
  return {hwloc_bitmap_alloc(), &hwloc_bitmap_free};
}

// Cores, what groups them and their NUMA nodes. Left out for a quick start: small caches, and what
// the x86 part of the library finds by running on every core in turn.
Topology load_topology() {
  hwloc_topology_t topology = nullptr;
  if (hwloc_topology_init(&topology) != 0) return {nullptr, &hwloc_topology_destroy};
  Topology owner(topology, &hwloc_topology_destroy);
  for (const hwloc_obj_type_t type : {HWLOC_OBJ_L1CACHE, HWLOC_OBJ_L2CACHE, HWLOC_OBJ_L1ICACHE})
    hwloc_topology_set_type_filter(topology, type, HWLOC_TYPE_FILTER_KEEP_NONE);
  hwloc_topology_set_components(topology, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, "x86");
  if (hwloc_topology_load(topology) != 0) owner.reset();
  return owner;
}

// Null where the topology cannot be read.
hwloc_topology_t host_topology() {
  static const Topology topology = load_topology();
  return topology.get();
}

CpuSet units_of(const Bitmap& bitmap) {
  CpuSet units;
  for (int unit = hwloc_bitmap_first(bitmap.get()); unit >= 0; unit = hwloc_bitmap_next(bitmap.get(), unit))
    units.push_back(unit);
  return units;
}

std::vector<CpuSet> find_allowed_cores(hwloc_topology_t topology) {
  const Bitmap bound = make_bitmap(), units = make_bitmap();
  if (hwloc_get_cpubind(topology, bound.get(), HWLOC_CPUBIND_THREAD) != 0)
    hwloc_bitmap_copy(bound.get(), hwloc_topology_get_allowed_cpuset(topology));
  // Some virtual machines show processing units and no cores.
  const auto type = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE) > 0 ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
  std::vector<CpuSet> cores;
  for (hwloc_obj_t core = hwloc_get_next_obj_by_type(topology, type, nullptr); core != nullptr;
       core = hwloc_get_next_obj_by_type(topology, type, core)) {
    hwloc_bitmap_and(units.get(), core->cpuset, bound.get());
    if (!hwloc_bitmap_iszero(units.get())) cores.push_back(units_of(units));
  }
  return cores;
}

}  // namespace

std::vector<CpuSet> allowed_cores() {
  std::vector<CpuSet> cores;
  if (host_topology() != nullptr) cores = find_allowed_cores(host_topology());
  if (cores.empty())
    for (int unit = 0; unit == 0 || unit < static_cast<int>(std::thread::hardware_concurrency()); unit++)
      cores.push_back({unit});
  return cores;
}

std::vector<int> memory_nodes(const CpuSet& units) {
  if (host_topology() == nullptr) return {};
  const Bitmap near = make_bitmap(), nodes = make_bitmap();
  for (const int unit : units) hwloc_bitmap_set(near.get(), static_cast<unsigned>(unit));
  hwloc_cpuset_to_nodeset(host_topology(), near.get(), nodes.get());
  return units_of(nodes);
}

bool bind_this_thread(const CpuSet& units) {
  if (units.empty()) return true;
  if (host_topology() == nullptr) return false;
  const Bitmap bitmap = make_bitmap();
  for (const int unit : units) hwloc_bitmap_set(bitmap.get(), static_cast<unsigned>(unit));
  return hwloc_set_cpubind(host_topology(), bitmap.get(), HWLOC_CPUBIND_THREAD) == 0;
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  std::map<std::string, std::string> first;  // of the first unit
  for (std::string line; std::getline(file, line) && !line.empty();) {
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::size_t name_end = line.find_last_not_of(" \t", colon - 1),
                      value = line.find_first_not_of(' ', colon + 1);
    first[line.substr(0, name_end + 1)] = value == std::string::npos ? "" : line.substr(value);
  }
  if (first.contains("model name")) return first["model name"];
  if (!first.contains("CPU part")) return "";
  return "implementer " + first["CPU implementer"] + " part " + first["CPU part"];
}

}  // namespace ptrt
