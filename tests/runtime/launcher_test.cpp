// Which launcher's variables count, and when there is none.
#include "runtime/job/launcher.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <map>

#include "runtime/job/reporter.h"

namespace ptrt {
namespace {

const char* const kVariables[] = {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK",     "PMI_SIZE",
                                  "SLURM_PROCID",         "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "PMIX_RANK",
                                  "MPI_LOCALNRANKS"};

// As a process with these variables has it.
LaunchedTask task_with(const std::map<std::string, std::string>& variables) {
  for (const char* name : kVariables) unsetenv(name);
  for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
  const LaunchedTask task = launched_task();
  for (const char* name : kVariables) unsetenv(name);
  return task;
}

TEST(Launcher, TheInnermostCounts) {
  const LaunchedTask mpirun = task_with({{"OMPI_COMM_WORLD_RANK", "1"},
                                         {"OMPI_COMM_WORLD_SIZE", "2"},
                                         {"SLURM_PROCID", "5"},
                                         {"SLURM_STEP_NUM_TASKS", "8"}});
  EXPECT_EQ(mpirun.rank, 1);
  EXPECT_EQ(mpirun.size, 2);
  const LaunchedTask step =
      task_with({{"SLURM_PROCID", "5"}, {"SLURM_STEP_NUM_TASKS", "8"}, {"PMIX_RANK", "5"}});
  EXPECT_EQ(step.rank, 5);
  EXPECT_EQ(step.size, 8);
  EXPECT_EQ(task_with({{"PMI_RANK", "3"}, {"PMI_SIZE", "4"}}).size, 4);
  EXPECT_EQ(task_with({{"PMI_RANK", "3"}, {"MPI_LOCALNRANKS", "4"}}).size, 4);
}

TEST(Launcher, DescribesItself) {
  const auto described = [](const std::map<std::string, std::string>& variables) {
    const char* const more[] = {"SLURM_JOB_ID", "PMIX_VERSION"};
    for (const char* name : kVariables) unsetenv(name);
    for (const char* name : more) unsetenv(name);
    for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
    const std::string text = describe_launcher();
    for (const auto& [name, value] : variables) unsetenv(name.c_str());
    return text;
  };
  EXPECT_EQ(described({}), "no launcher");
  EXPECT_EQ(described({{"SLURM_JOB_ID", "7"}, {"SLURM_PROCID", "0"}}), "no launcher, Slurm job 7");
  EXPECT_EQ(described({{"OMPI_COMM_WORLD_SIZE", "2"}, {"PMIX_RANK", "0"}, {"SLURM_JOB_ID", "7"}}),
            "mpirun (PMIx), Slurm job 7");
  EXPECT_EQ(
      described(
          {{"PMIX_RANK", "0"}, {"PMIX_VERSION", "4.2.2"}, {"SLURM_PROCID", "0"}, {"SLURM_JOB_ID", "7"}}),
      "srun (PMIx 4.2.2), Slurm job 7");
  EXPECT_EQ(described({{"SLURM_STEP_NUM_TASKS", "2"}, {"SLURM_JOB_ID", "7"}}),
            "srun without PMI, Slurm job 7");
}

TEST(Launcher, CpusOfATaskInAJobOfSlurmOnly) {
  const auto cpus_with = [](const char* job, const char* cpus) {
    job != nullptr ? setenv("SLURM_JOB_ID", job, 1) : unsetenv("SLURM_JOB_ID");
    cpus != nullptr ? setenv("SLURM_CPUS_PER_TASK", cpus, 1) : unsetenv("SLURM_CPUS_PER_TASK");
    const auto found = slurm_cpus_per_task();
    unsetenv("SLURM_JOB_ID");
    unsetenv("SLURM_CPUS_PER_TASK");
    return found;
  };
  EXPECT_EQ(cpus_with("7", "4"), 4);
  EXPECT_EQ(cpus_with(nullptr, "4"), std::nullopt);
  for (const char* strange : {"", "0", "-1", "many", "4x", "99999999999"})
    EXPECT_EQ(cpus_with("7", strange), std::nullopt) << strange;
  EXPECT_EQ(cpus_with("7", nullptr), std::nullopt);
}

TEST(Launcher, ABatchScriptIsNone) {
  const LaunchedTask script = task_with({{"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}});
  EXPECT_FALSE(script.size.has_value());
  EXPECT_FALSE(task_with({}).rank.has_value());
  EXPECT_FALSE(task_with({{"PMI_SIZE", "many"}}).size.has_value());
  EXPECT_EQ(launched_name(), "") << "this test was not started by a launcher";
}

TEST(Launcher, OneProcessOfAJobReportsUntilItEnds) {
  const std::string job = "test." + std::to_string(getpid());
  const auto first_in_child = [&] {
    const pid_t child = fork();
    if (child == 0) _exit(first_to_report_here(job) ? 1 : 0);
    int status = 0;
    waitpid(child, &status, 0);
    return WEXITSTATUS(status) == 1;
  };
  EXPECT_TRUE(first_in_child());
  EXPECT_TRUE(first_in_child()) << "the first has ended";
  EXPECT_TRUE(first_to_report_here(job));
  EXPECT_FALSE(first_in_child());
  EXPECT_FALSE(first_to_report_here(job)) << "asked again";
  EXPECT_TRUE(first_to_report_here(job + ".2")) << "another job";
}

TEST(Launcher, TheJobIsNamedByPmixElseSlurmElseTheDaemon) {
  const char* const names[] = {"PMIX_NAMESPACE", "SLURM_JOB_ID", "SLURM_STEP_ID"};
  for (const char* name : names) unsetenv(name);
  const std::string alone = launched_job();
  EXPECT_EQ(alone, "parent." + std::to_string(getppid()));
  setenv("SLURM_JOB_ID", "7", 1);
  EXPECT_EQ(launched_job(), alone) << "a batch script is no step";
  setenv("SLURM_STEP_ID", "0", 1);
  EXPECT_EQ(launched_job(), "slurm.7.0");
  setenv("PMIX_NAMESPACE", "30667.1", 1);
  EXPECT_EQ(launched_job(), "30667.1");
  for (const char* name : names) unsetenv(name);
}

}  // namespace
}  // namespace ptrt
