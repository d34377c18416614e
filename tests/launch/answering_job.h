// A JobComm that only exchanges texts, with ranks that a test answers for.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/comm/track_comm.h"

namespace ptrt {

// Rank 0 of a job whose other ranks give these answers to every all_gather, or answer what rank 0 says.
class AnsweringJob : public JobComm {
 public:
  using Answers = std::function<std::vector<std::string>(const std::string& mine)>;
  explicit AnsweringJob(std::vector<std::string> others)
      : others_(std::ssize(others)), answers_([others](const std::string&) { return others; }) {}
  AnsweringJob(std::int64_t others, Answers answers) : others_(others), answers_(std::move(answers)) {}
  std::vector<std::string> all_gather(const std::string& mine) override {
    exchanges++;
    std::vector<std::string> all{mine};
    for (std::string& other : answers_(mine)) all.push_back(std::move(other));
    return all;
  }
  int exchanges = 0;  // so far

  int size() const override { return static_cast<int>(others_) + 1; }
  int rank() const override { return 0; }
  int host_ranks() const override { return size(); }
  int host_rank() const override { return 0; }
  std::string host() const override { return "here"; }
  void barrier() override {}
  bool barrier_within(double) override { return true; }
  std::string broadcast(const std::string& text) override { return text; }
  std::vector<std::string> gather(const std::string& mine) override { return all_gather(mine); }
  std::vector<std::string> all_gather_on_host(const std::string& mine) override { return all_gather(mine); }
  std::unique_ptr<TrackComm> split(int, Waiting) override { return nullptr; }
  bool post(const std::string&, Post, const std::function<bool()>&) override { return true; }
  void send(int, std::string) override {}
  std::optional<Mail> poll_post() override { return std::nullopt; }
  [[noreturn]] void abort(int exit_code) override { std::exit(exit_code); }

 private:
  std::int64_t others_;
  Answers answers_;
};

}  // namespace ptrt
