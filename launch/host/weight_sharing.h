// Which ranks of a host have the same weights, and one copy of them for all: replicas on one host.
#pragma once

#include <memory>
#include <string>

#include "kernels/weight_memory.h"
#include "runtime/comm/track_comm.h"

namespace ptrt {

struct WeightGroup {
  int ranks = 1;   // of this host, with the same weights; 1: this rank has its own
  int leader = 0;  // the one that loads them, by its number on the host
  bool leads = true;
  std::string why_not;  // why ranks with the same weights do not share them; empty elsewhere
};

// The group of this rank. Ranks whose `weights` are the same text have the same; an empty text: shares with none.
// Whether their memory can be mapped is tried. Collective over the job.
WeightGroup agree_on_weight_group(JobComm& job, const std::string& weights);

// Every leader calls it with the description of its memory, and whatever else the others must know; the others get
// that of their leader. Collective over the job.
std::string take_from_leader(JobComm& job, const WeightGroup& group, const std::string& mine);

}  // namespace ptrt
