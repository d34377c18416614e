// What `ptrt inspect --json` prints, one object:
//   file, format_version, config      as in the file
//   parameters                        {shared, per_track, total}
//   bytes                             {shared, tracks: [one a track], total} of tensor data in the file
//   datasets                          {total, by_type: {float32: n, ..., int8: n, "int8 scales": n,
//                                       float8_e4m3fn: n, "float8 scales": n},
//                                       in_panels: n, the others are rows}
//   files                             [{path, bytes}], the main one first
//   tokenizer                         {kind (null: none), usable, why_not}
//   checksums                         {present, absent, verified (--verify was given), failed: [..],
//                                       unchecked: [..]}
//   not_finite                        [{dataset, count, first: index}]: elements, or scales, that are
//                                     NaN or infinite; null without --verify
//   kv_bytes_per_token_per_track      {float32, bfloat16}: what --kv-dtype chooses between
//   device_dtype                      of activations, keys and values on a GPU, and of matrices but for those of 8
//                                     bits: bfloat16 or float16
//   placements                        [{ranks, tracks_per_rank, weight_bytes_per_rank,
//                                       kv_bytes_per_token_per_rank: {float32, bfloat16}}]
//                                     for one replica, every number of ranks that fits
//   ranks                             [{rank, replica, first_track, tracks, weight_bytes, device}] over
//                                     --ranks (default: a rank a track); device: {weight_bytes,
//                                     kv_bytes_per_token, scratch_bytes} if the rank ran on a GPU with the
//                                     default --max-batch and --max-step-tokens
// weight_bytes are those held in memory (norm weights as float32, float8 as what the CPU widens it to); of ranks
// that differ, the largest.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "launch/commands/model/model_facts.h"

namespace ptrt {

nlohmann::ordered_json inspect_json(const ModelFile& model, const ModelFacts& facts,
                                    const std::vector<Placement>& ranks);

}  // namespace ptrt
