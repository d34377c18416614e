// How replicas divide the requests of a job.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/requests/request.h"

namespace ptrt {

// The share of one replica of the requests `pending` (ascending indices): dealt by cost, longest
// first, to the replica with the least so far; each replica then keeps their order. The same on
// every rank.
std::vector<std::int64_t> requests_of_replica(std::span<const Request> requests,
                                              std::span<const std::int64_t> pending, std::int64_t replicas,
                                              std::int64_t replica);

}  // namespace ptrt
