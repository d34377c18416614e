// The verdict of `ptrt doctor` on good and bad launches.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/nccl_version.h"
#include "launch/doctor/doctor_table.h"
#include "launch/doctor/judge.h"

namespace ptrt {
namespace {

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

// Hosts "a", "b", … with so many ranks each, where nothing is wrong.
Launch good_launch(int hosts, int ranks_a_host) {
  Launch launch;
  for (int r = 0; r < hosts * ranks_a_host; r++) {
    LaunchFacts facts;
    facts.rank = r;
    facts.host = std::string(1, static_cast<char>('a' + r / ranks_a_host));
    facts.host_first = r - r % ranks_a_host;
    facts.host_rank = r % ranks_a_host;
    facts.host_ranks = ranks_a_host;
    facts.launcher = "srun (PMIx 4.2.2), Slurm job 7";
    facts.launched = hosts * ranks_a_host;
    facts.mpi = "Open MPI 4.1.4";
    facts.mpi_level = "MPI_THREAD_MULTIPLE";
    facts.program = "0.1.0 (build 1)";
    facts.instruction_sets = {"AVX3", "AVX2", "SSE4"};
    for (int unit = 0; unit < ranks_a_host; unit++) facts.allowed_cores.push_back({unit});
    facts.memory_bytes = 4 * kGiB;
    facts.shm_bytes = facts.shm_free_bytes = 8 * kGiB;
    facts.hdf5 = "1.10.8";
    facts.why_no_gpu = "no CUDA driver on this host (libcuda.so.1)";
    facts.model = "m.h5: 2 tracks x 8 layers, 2 sync points";
    launch.ranks.push_back(facts);
  }
  launch.replica_ranks = hosts * ranks_a_host;
  launch.measured.clock_ahead_s.assign(launch.ranks.size(), 0.0001);
  launch.measured.all_reduce = {{4096, 3.2}};
  launch.measured.shares_memory = hosts == 1;
  launch.measured.two_levels = hosts > 1 && ranks_a_host > 1;
  launch.measured.output = {"results.jsonl", "", 100 * kGiB,
                            std::vector(launch.ranks.size(), LockSeen::held)};
  return launch;
}

// A GPU of its own for each rank.
Launch gpu_launch(int hosts, int ranks_a_host) {
  Launch launch = good_launch(hosts, ranks_a_host);
  for (LaunchFacts& facts : launch.ranks) {
    facts.gpus = {fmt::format("GPU-{:08x}-0", facts.rank)};
    facts.why_no_gpu.clear();
    facts.driver = "535.104.05, CUDA 12.4";
    facts.nccl = 22703;
  }
  launch.device = Device::cuda;
  return launch;
}

// That there is one finding, with these words.
void expect_finding(const Launch& launch, bool fails, const std::vector<std::string>& words) {
  const std::vector<Finding> found = judge(launch);
  ASSERT_EQ(found.size(), 1u) << doctor_verdict(found, 2);
  EXPECT_EQ(found[0].fails, fails) << found[0].what;
  EXPECT_FALSE(found[0].change.empty());
  for (const std::string& word : words)
    EXPECT_NE((found[0].what + " / " + found[0].change).find(word), std::string::npos)
        << word << " is not in: " << found[0].what << " / " << found[0].change;
}

TEST(Doctor, FindsNothingInGoodLaunches) {
  for (const auto& [hosts, ranks] : {std::pair{1, 1}, {1, 4}, {2, 1}, {4, 16}}) {
    EXPECT_TRUE(judge(good_launch(hosts, ranks)).empty());
    EXPECT_TRUE(judge(gpu_launch(hosts, ranks)).empty());
  }
  EXPECT_NE(doctor_verdict({}, 4).find("verdict: a job of 4 ranks like this can run\n"), std::string::npos);
}

TEST(Doctor, NamesRanks) {
  EXPECT_EQ(name_ranks(std::vector{3}), "rank 3");
  EXPECT_EQ(name_ranks(std::vector{0, 1, 2, 5, 7, 8}), "ranks 0-2, 5, 7-8");
}

TEST(Doctor, AModelThatSomeHostsDoNotSee) {
  Launch launch = good_launch(4, 2);
  for (const int r : {2, 3, 6, 7}) {
    launch.ranks[static_cast<std::size_t>(r)].model.clear();
    launch.ranks[static_cast<std::size_t>(r)].model_error = "m.h5: cannot open: No such file or directory";
  }
  expect_finding(launch, true,
                 {"ranks 2-3, 6-7 (hosts b, d) cannot read the model", "No such file", "all hosts see"});
  for (LaunchFacts& facts : launch.ranks) facts.model_error = "m.h5: damaged";
  expect_finding(launch, true, {"no rank can read the model: m.h5: damaged", "give the path"});
}

TEST(Doctor, DifferentPrograms) {
  Launch launch = good_launch(2, 2);
  launch.ranks[2].program = launch.ranks[3].program = "0.1.0 (build 2)";
  expect_finding(launch, true,
                 {"0.1.0 (build 1) on ranks 0-1 (host a), 0.1.0 (build 2) on ranks 2-3 (host b)"});
  launch = good_launch(2, 1);
  launch.ranks[1].mpi = "MPICH 4.0";
  expect_finding(launch, true, {"different MPI libraries", "MPICH 4.0 on rank 1 (host b)"});
  EXPECT_FALSE(can_exchange(launch.ranks));
}

TEST(Doctor, DifferentProcessors) {
  Launch launch = good_launch(2, 2);
  launch.ranks[3].instruction_sets = {"AVX2", "SSE4"};
  expect_finding(launch, false, {"all ranks compute with AVX2", "AVX2 on rank 3 (host b)", "--constraint"});
  launch.ranks[3].instruction_sets = {"NEON"};
  expect_finding(launch, true, {"no instruction set is common", "NEON on rank 3"});
  launch.ranks[3].instruction_sets.clear();
  launch.ranks[3].instruction_error = "PTRT_SIMD_TARGET=AVX9: this machine runs AVX2";
  expect_finding(launch, true, {"rank 3 (host b)", "AVX9"});
}

TEST(Doctor, NoGpuWhereOneIsAskedFor) {
  Launch launch = gpu_launch(2, 2);
  launch.ranks[3].gpus.clear();
  launch.ranks[3].why_no_gpu = "no CUDA device";
  expect_finding(launch, true, {"rank 3 (host b): --backend cuda, but no CUDA device", "--gpus-per-task=1"});
  launch.device.reset();
  expect_finding(launch, false, {"rank 3 (host b) see no GPU", "all ranks run on the CPU"});
  launch.device = Device::cpu;
  EXPECT_TRUE(judge(launch).empty());
}

TEST(Doctor, RanksThatShareAGpu) {
  Launch launch = gpu_launch(2, 2);
  launch.ranks[3].gpus = launch.ranks[2].gpus;
  expect_finding(launch, true,
                 {"host b: ranks 2 and 3 of this host would share the GPU GPU-00000002", "--share-gpu"});
  launch.share_gpu = true;
  EXPECT_TRUE(judge(launch).empty());
  launch.share_gpu = false;
  launch.device.reset();
  expect_finding(launch, false, {"host b", "all ranks run on the CPU"});
  // All visible to each rank.
  launch = gpu_launch(1, 2);
  launch.ranks[0].gpus = launch.ranks[1].gpus = {"GPU-0", "GPU-1"};
  EXPECT_TRUE(judge(launch).empty());
}

TEST(Doctor, VersionsOfNccl) {
  for (const int version : {22602, 22703, 22707, 23007, 23102})
    EXPECT_TRUE(nccl_waits_for_kernels(version)) << version;
  for (const int version : {22800, 22803, 22809, 22907, 23004, 23006})
    EXPECT_FALSE(nccl_waits_for_kernels(version));
  Launch launch = gpu_launch(2, 1);
  for (LaunchFacts& facts : launch.ranks) facts.nccl = 22809;
  expect_finding(launch, false, {"NCCL 2.28.9 does without symmetric windows", "2.30.7"});
  for (LaunchFacts& facts : launch.ranks) facts.nccl_windows_off = true;
  EXPECT_TRUE(judge(launch).empty());
  launch.ranks[1].nccl = 22703;
  expect_finding(
      launch, true,
      {"the ranks of the job run different versions of NCCL: 2.28.9 on rank 0 (host a), 2.27.3 on rank "
       "1 (host b)"});
  launch.ranks[1].nccl = 0;
  expect_finding(launch, false, {"rank 1 (host b): there is no libnccl.so.2", "LD_LIBRARY_PATH"});
  launch = gpu_launch(1, 1);
  launch.ranks[0].nccl = 22809;
  EXPECT_TRUE(judge(launch).empty()) << "one rank has no sums";
}

TEST(Doctor, ReplicasMayHaveVersionsOfNcclOfTheirOwn) {
  Launch launch = gpu_launch(4, 2);
  launch.replica_ranks = 4;
  for (std::size_t r = 4; r < 8; r++) launch.ranks[r].nccl = 23007;
  EXPECT_TRUE(judge(launch).empty());
  launch.ranks[6].nccl = 22707;
  expect_finding(
      launch, true,
      {"the ranks of replica 1 run different versions of NCCL: 2.30.7 on ranks 4-5, 7 (hosts c, d), 2.27.7 "
       "on rank 6 (host d)"});
  launch.replica_ranks = 8;
  expect_finding(launch, true, {"the ranks of the job run different versions of NCCL: 2.27.3 on ranks 0-3"});
}

TEST(Doctor, JudgesNcclOnlyWhereItWouldAdd) {
  Launch launch = gpu_launch(2, 2);
  for (LaunchFacts& facts : launch.ranks) facts.nccl = 22809;
  launch.ranks[3].nccl = 22703;  // without windows, and different
  EXPECT_EQ(judge(launch).size(), 2u);
  launch.replica_ranks = 1;
  EXPECT_TRUE(judge(launch).empty()) << "replicas of a rank each";
  launch.replica_ranks = 2;
  EXPECT_EQ(judge(launch).size(), 2u);
  launch.device.reset();
  EXPECT_EQ(judge(launch).size(), 2u) << "all have a GPU";
  launch.ranks[0].gpus.clear();
  expect_finding(launch, false, {"rank 0 (host a) see no GPU", "all ranks run on the CPU"});
  launch.ranks[0].gpus = launch.ranks[1].gpus;
  expect_finding(launch, false, {"would share the GPU", "all ranks run on the CPU"});
}

// Containers on two nodes, of one name.
TEST(Doctor, HostsOfOneName) {
  Launch launch = gpu_launch(2, 2);
  for (LaunchFacts& facts : launch.ranks) {
    facts.host = "box";
    facts.gpus = {fmt::format("GPU-{}", facts.host_rank)};
    facts.allowed_cores = {{facts.host_first + facts.host_rank}};
  }
  EXPECT_TRUE(judge(launch).empty());
  launch.ranks[2].oversubscribed = true;
  launch.ranks[2].threads = launch.ranks[3].threads = 4;
  expect_finding(launch, false, {"rank 2 (host box)", "8 threads of 2 ranks", "units 2,3"});
  const std::string table = doctor_table(launch, "");
  EXPECT_NE(table.find("4 on 2 hosts\n               box: ranks 0-1 (local 0-1)\n"
                       "               box: ranks 2-3 (local 0-1)\n"),
            std::string::npos)
      << table;
  EXPECT_NE(table.find("units 2-3 of the host"), std::string::npos) << table;
}

TEST(Doctor, LittleSharedMemory) {
  Launch launch = good_launch(2, 4);
  for (std::size_t r = 4; r < 8; r++) launch.ranks[r].shm_bytes = launch.ranks[r].shm_free_bytes = 16 << 20;
  expect_finding(launch, true, {"host b: /dev/shm has 16.0 MiB, and its 4 ranks need 24.0 MiB", "size=48m"});
  EXPECT_FALSE(can_exchange(launch.ranks)) << "they would hang";
  for (LaunchFacts& facts : launch.ranks) facts.shm_bytes = 64 << 20;
  EXPECT_TRUE(judge(launch).empty());
  EXPECT_TRUE(can_exchange(launch.ranks));
  launch = good_launch(2, 1);
  launch.ranks[0].shm_bytes = 1 << 20;
  EXPECT_TRUE(judge(launch).empty()) << "alone on its host, a rank shares nothing";
  launch = good_launch(1, 2);
  launch.measured.shares_memory = false;
  expect_finding(launch, false, {"share no memory", "by messages"});
}

// A tmpfs of size=0 has no limit, and tells of no blocks.
TEST(Doctor, SharedMemoryWithoutALimit) {
  Launch launch = good_launch(1, 2);
  for (LaunchFacts& facts : launch.ranks) facts.shm_bytes = facts.shm_free_bytes = 0;
  expect_finding(
      launch, true,
      {"host a: /dev/shm has no limit, which Open MPI takes for no space", "OMPI_MCA_shmem=posix"});
  EXPECT_FALSE(can_exchange(launch.ranks)) << "they would hang";
  EXPECT_NE(doctor_table(launch, "").find("/dev/shm       no limit\n"), std::string::npos);
  for (LaunchFacts& facts : launch.ranks) facts.mpi_shmem = "posix";
  EXPECT_TRUE(judge(launch).empty());
  EXPECT_TRUE(can_exchange(launch.ranks));
  for (LaunchFacts& facts : launch.ranks) facts.mpi = "MPICH 4.0", facts.mpi_shmem.clear();
  EXPECT_TRUE(judge(launch).empty());
}

TEST(Doctor, WhereResultsWouldGo) {
  Launch launch = good_launch(2, 1);
  launch.measured.output.error = "cannot write /x: Permission denied";
  expect_finding(launch, true, {"rank 0 cannot write results", "Permission denied"});
  launch = good_launch(2, 1);
  launch.measured.output.seen = {LockSeen::held, LockSeen::free};
  expect_finding(launch, false, {"does not keep locks", "rank 1 (host b) got one that rank 0 holds"});
  launch.measured.output.seen = {LockSeen::unsupported, LockSeen::unsupported};
  expect_finding(launch, false, {"has no locks"});
  launch.measured.output.seen = {LockSeen::held, LockSeen::absent};
  EXPECT_TRUE(judge(launch).empty()) << "rank 0 alone writes";
  launch.measured.output.free_bytes = 1 << 20;
  expect_finding(launch, false, {"1.0 MiB are left"});
}

TEST(Doctor, MoreThreadsThanCores) {
  Launch launch = good_launch(2, 2);
  for (const std::size_t r : {2, 3}) {
    launch.ranks[r].oversubscribed = true;
    launch.ranks[r].threads = 4;
  }
  expect_finding(launch, false,
                 {"ranks 2-3 (host b)", "8 threads of 2 ranks", "units 0,1", "--cpus-per-task"});
}

TEST(Doctor, ClocksOfTheDay) {
  Launch launch = good_launch(2, 2);
  launch.measured.clock_ahead_s = {0, 0, -7.25, -7.24};
  expect_finding(launch, false, {"ranks 2-3 (host b)", "7.2 s behind", "chrony"});
}

TEST(Doctor, ProcessesThatMpiDoesNotJoin) {
  Launch launch = good_launch(1, 1);
  launch.ranks[0].launched = 4;
  expect_finding(launch, false, {"started 4 processes", "--mpi=pmix"});
}

TEST(Doctor, WhatFailsComesFirst) {
  Launch launch = good_launch(2, 2);
  launch.measured.clock_ahead_s[3] = 100;
  launch.ranks[3].oversubscribed = true;
  launch.measured.output.error = "cannot write";
  const std::vector<Finding> found = judge(launch);
  ASSERT_EQ(found.size(), 3u);
  EXPECT_TRUE(found[0].fails);
  EXPECT_FALSE(found[1].fails || found[2].fails);
  const std::string text = doctor_verdict(found, 4);
  EXPECT_EQ(std::ranges::count(text, '\n'), 4) << "a line a finding, and the verdict";
  EXPECT_TRUE(text.starts_with("problem: "));
  EXPECT_NE(text.find(" / change: "), std::string::npos);
  EXPECT_NE(text.find("would fail (1 problem)"), std::string::npos);
}

TEST(Doctor, RefusalsOfAJob) {
  for (const char* message : {"not enough memory: SLURM_MEM_PER_NODE leaves this rank 1.0 MiB",
                              "3 ranks do not fit 8 tracks: start 1, 2", "something new"}) {
    const Finding finding = refusal(message);
    EXPECT_TRUE(finding.fails);
    EXPECT_EQ(finding.what, message);
    EXPECT_FALSE(finding.change.empty());
  }
  EXPECT_NE(refusal("not enough memory: …").change.find("--mem"), std::string::npos);
}

TEST(Doctor, FactsTravelAsText) {
  LaunchFacts facts = gpu_launch(1, 2).ranks[1];
  facts.model_error = "a path that is not UTF-8: \xff";
  const LaunchFacts back = parse_facts(to_text(facts));
  EXPECT_EQ(back.rank, 1);
  EXPECT_EQ(back.gpus, facts.gpus);
  EXPECT_EQ(back.allowed_cores, facts.allowed_cores);
  EXPECT_EQ(back.memory_bytes, facts.memory_bytes);
  EXPECT_FALSE(back.model_error.empty());
  EXPECT_EQ(parse_facts(R"({"rank": 5, "of_a_newer_program": 1})").rank, 5);
}

TEST(Doctor, RanksThatAreAlikeShareALine) {
  const std::string table = doctor_table(gpu_launch(4, 16), "1 track a rank");
  EXPECT_LT(std::ranges::count(table, '\n'), 25) << table;
  EXPECT_NE(table.find("64 on 4 hosts"), std::string::npos);
  EXPECT_NE(table.find("b: ranks 16-31 (local 0-15)"), std::string::npos) << table;
  EXPECT_NE(table.find("16 on the host, 1 visible to each rank: GPU-00000000, "), std::string::npos) << table;
  EXPECT_NE(table.find("NCCL 2.27.3, symmetric windows safe"), std::string::npos);
  Launch mixed = good_launch(2, 2);
  mixed.ranks[3].instruction_sets = {"AVX2"};
  const std::string two = doctor_table(mixed, "");
  EXPECT_NE(
      two.find("over all ranks, in two levels, in shared memory on a host and by messages between hosts: "),
      std::string::npos)
      << two;
  EXPECT_NE(doctor_table(good_launch(1, 2), "").find("over all ranks, in shared memory: "),
            std::string::npos);
  EXPECT_NE(doctor_table(good_launch(2, 1), "").find("over all ranks, by messages: "), std::string::npos);
  EXPECT_NE(two.find("instructions   ranks 0-2: AVX3, AVX2, SSE4\n               rank 3: AVX2\n"),
            std::string::npos)
      << two;
}

}  // namespace
}  // namespace ptrt
