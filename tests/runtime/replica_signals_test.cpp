#include "runtime/serving/replica_signals.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>

#include "runtime/sync/step_header.h"
#include "thread_comm.h"

namespace ptrt {
namespace {

using Clock = ReplicaSignals::Clock;

TEST(ReplicaSignal, FlagsHoldAllPartsUnmixed) {
  for (const std::int64_t arrived :
       {std::int64_t{0}, std::int64_t{1}, std::int64_t{255}, std::int64_t{256}, (std::int64_t{1} << 55) - 1})
    for (const bool stop : {false, true})
      for (const bool last : {false, true}) {
        const std::uint64_t flags = ReplicaSignal{arrived, stop, last}.encode();
        EXPECT_EQ((flags & kStopFlag) != 0, stop) << "as the sync points read it";
        const ReplicaSignal back = ReplicaSignal::decode(flags);
        EXPECT_EQ(back.count, arrived);
        EXPECT_EQ(back.stop, stop);
        EXPECT_EQ(back.last, last);
      }
}

TEST(ReplicaSignals, TheLeaderSendsWhatItsClockAndSignalsSay) {
  ThreadCommGroup group(1);
  const auto comm = group.comm(0);
  const auto start = Clock::now() - std::chrono::seconds(10);
  bool stop = false;
  ReplicaSignals leader(*comm, true, start, {0, 1, 1, 1000}, [&] { return stop; });
  EXPECT_TRUE(leader.has_arrivals());
  EXPECT_EQ(ReplicaSignal::decode(leader.flags_to_send()).count, 3);
  EXPECT_FALSE(ReplicaSignal::decode(leader.flags_to_send()).stop);
  stop = true;
  EXPECT_TRUE(ReplicaSignal::decode(leader.flags_to_send()).stop);
  EXPECT_FALSE(leader.stop()) << "not before the flags have come round";
  EXPECT_EQ(ReplicaSignals(*comm, false, start, {0, 1000}, [] { return true; }).flags_to_send(), 0u);
  EXPECT_FALSE(ReplicaSignals(*comm, true, start, {0, 0}, {}).has_arrivals()) << "all are there at the start";
}

TEST(ReplicaSignals, WaitingRanksAdoptWhatTheFirstSays) {
  ThreadCommGroup group(3);
  group.run([&](TrackComm& comm) {
    const bool leads = comm.rank() == 0;
    // Clocks differ: on the first rank one request has arrived, on the others two.
    const auto start = Clock::now() - std::chrono::seconds(leads ? 5 : 50);
    ReplicaSignals signals(comm, leads, start, {1, 20, 1000}, [&] { return leads; });
    signals.wait();
    EXPECT_EQ(signals.arrived(), 1);
    EXPECT_TRUE(signals.stop());
  });
}

}  // namespace
}  // namespace ptrt
