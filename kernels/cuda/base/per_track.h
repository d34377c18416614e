// One weight pointer per track, passed to kernels by value. A rank with more tracks than one launch
// holds makes several launches.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/tensor.h"

namespace ptrt {

inline constexpr int kTracksPerLaunch = 16;

template <typename T>
struct PerTrack {
  const T* at[kTracksPerLaunch] = {};

  void set(std::int64_t track, const void* data) { at[track] = static_cast<const T*>(data); }
};

template <typename T>
PerTrack<T> per_track(const TrackWeights& weights, std::int64_t first, std::int64_t count) {
  PerTrack<T> pointers;
  for (std::int64_t t = 0; t < count; ++t) pointers.set(t, weights[static_cast<std::size_t>(first + t)].data);
  return pointers;
}

// Calls launch(first, count) for each group of up to kTracksPerLaunch tracks.
template <typename Launch>
void for_track_groups(std::int64_t tracks, const Launch& launch) {
  for (std::int64_t first = 0; first < tracks; first += kTracksPerLaunch)
    launch(first, std::min<std::int64_t>(kTracksPerLaunch, tracks - first));
}

}  // namespace ptrt
