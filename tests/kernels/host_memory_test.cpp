// Limits read from a made-up /proc and /sys.
#include "kernels/base/host_memory.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "temp_folder.h"

namespace ptrt {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMiB = std::int64_t{1} << 20, kGiB = std::int64_t{1} << 30;

class HostMemory : public testing::Test {
 protected:
  HostMemory() {
    sources_.cgroups = root_ + "/cgroup";
    sources_.mounts = root_ + "/mountinfo";
    sources_.environment = [this](const char* variable) -> const char* {
      const auto found = environment_.find(variable);
      return found == environment_.end() ? nullptr : found->second.c_str();
    };
    sources_.physical_bytes = 64 * kGiB;
    sources_.swap_bytes = 8 * kGiB;
    sources_.address_space = [] { return std::nullopt; };
  }

  void put(const std::string& path, const std::string& text) const {
    fs::create_directories(fs::path(root_ + "/" + path).parent_path());
    std::ofstream(root_ + "/" + path) << text << "\n";
  }
  void mount_v2(const std::string& cgroup_root) const {
    put("mountinfo",
        "30 23 0:26 / /proc rw shared:5 - proc proc rw\n" +
            fmt::format("35 30 0:30 {} {}/v2 rw,nosuid shared:9 - cgroup2 cgroup2 rw", cgroup_root, root_));
  }
  MemoryLimit limit(int ranks = 1) const { return memory_limit_of_rank(ranks, sources_); }

  TempFolder folder_;
  const std::string root_ = folder_.path();
  MemorySources sources_;
  std::map<std::string, std::string> environment_;
};

TEST_F(HostMemory, PhysicalWhereNothingIsLimited) {
  EXPECT_EQ(limit().bytes, 64 * kGiB) << "neither file exists";
  EXPECT_EQ(limit(3).bytes, 64 * kGiB / 3);
  EXPECT_EQ(limit(2).swap_bytes, 4 * kGiB);
  mount_v2("/");
  put("cgroup", "0::/user.slice");
  put("v2/user.slice/memory.max", "max");
  EXPECT_EQ(limit().bytes, 64 * kGiB);
  EXPECT_EQ(limit().source, "");
}

TEST_F(HostMemory, LeastOfACgroupAndThoseAroundIt) {
  mount_v2("/");
  put("cgroup", "0::/system.slice/slurm/job_7/step_0");
  put("v2/system.slice/slurm/job_7/step_0/memory.max", "max");
  put("v2/system.slice/slurm/job_7/memory.max", fmt::format("{}", 8 * kGiB));
  put("v2/system.slice/slurm/memory.max", fmt::format("{}", 16 * kGiB));
  EXPECT_EQ(limit(2).bytes, 4 * kGiB);
  EXPECT_EQ(limit(2).source, "the memory limit of the cgroup /system.slice/slurm/job_7");
  EXPECT_FALSE(limit().counts_mapped_files);
  EXPECT_EQ(limit().swap_bytes, 0);
}

TEST_F(HostMemory, AContainersOwnCgroup) {
  put("v2/memory.max", fmt::format("{}", 2 * kGiB));
  for (const auto& [root, cgroup] : std::map<std::string, std::string>{{"/", "0::/"},
                                                                       {"/docker/12ab", "0::/docker/12ab"},
                                                                       {"/../../x", "0::/../../x"},
                                                                       {"/docker/12ab", "0::/other"}}) {
    mount_v2(root);
    put("cgroup", cgroup);
    EXPECT_EQ(limit().bytes, 2 * kGiB) << root << ' ' << cgroup;
    EXPECT_EQ(limit().source, "the memory limit of the cgroup /");
  }
}

TEST_F(HostMemory, CgroupsOfVersion1) {
  put("mountinfo", fmt::format("33 32 0:31 / {0}/cpu rw - cgroup cgroup rw,cpu\n"
                               "36 32 0:33 / {0}/memory rw - cgroup cgroup rw,memory\n"
                               "41 32 0:38 / {0}/unified rw - cgroup2 cgroup2 rw",
                               root_));
  put("cgroup", "8:cpu:/elsewhere\n4:memory:/slurm/uid_0/job_7\n0::/");
  put("memory/memory.limit_in_bytes", "9223372036854771712");
  put("memory/slurm/uid_0/job_7/memory.limit_in_bytes", fmt::format("{}", 6 * kGiB));
  EXPECT_EQ(limit().bytes, 6 * kGiB);
  EXPECT_EQ(limit().source, "the memory limit of the cgroup /slurm/uid_0/job_7");
  put("memory/memory.stat", fmt::format("cache 12\nhierarchical_memory_limit {}\ntotal_rss 5", 3 * kGiB));
  EXPECT_EQ(limit().bytes, 3 * kGiB);
}

TEST_F(HostMemory, SlurmInAJobOnly) {
  environment_ = {{"SLURM_MEM_PER_NODE", "2048"}};
  EXPECT_EQ(limit().bytes, 64 * kGiB) << "no job";
  environment_["SLURM_JOB_ID"] = "7";
  EXPECT_EQ(limit(4).bytes, 512 * kMiB);
  EXPECT_EQ(limit().source, "SLURM_MEM_PER_NODE");
  environment_["SLURM_MEM_PER_NODE"] = "0";  // all of the node
  EXPECT_EQ(limit().bytes, 64 * kGiB);
  environment_ = {{"SLURM_JOB_ID", "7"}, {"SLURM_MEM_PER_CPU", "1000"}, {"SLURM_CPUS_ON_NODE", "6"}};
  EXPECT_EQ(limit(2).bytes, 3000 * kMiB);
  for (const char* strange : {"", "many", "1e3", "99999999999999999999", "-5"}) {
    environment_["SLURM_MEM_PER_CPU"] = strange;
    EXPECT_EQ(limit().bytes, 64 * kGiB) << strange;
  }
}

TEST_F(HostMemory, AddressSpaceIsOfEachRank) {
  sources_.address_space = [] { return std::optional(20 * kGiB); };
  EXPECT_EQ(limit(2).bytes, 20 * kGiB);
  EXPECT_TRUE(limit(2).counts_mapped_files);
  EXPECT_EQ(limit(4).bytes, 16 * kGiB);
  EXPECT_FALSE(limit(4).counts_mapped_files);
}

}  // namespace
}  // namespace ptrt
