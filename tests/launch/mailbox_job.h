// A JobComm of two ranks that only has the mailbox, between threads: rank 1's posts, and what rank 0 sends it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "runtime/comm/track_comm.h"

namespace ptrt {

struct Mailbox {
  std::mutex mutex;
  std::deque<std::string> messages[2];  // by the rank that takes them
};

class MailboxJob : public JobComm {
 public:
  MailboxJob(Mailbox& mailbox, int rank) : mailbox_(mailbox), rank_(rank) {}

  bool post(const std::string& message, Post until, const std::function<bool()>& give_up) override {
    send(0, message);
    while (until == Post::taken) {
      if (give_up()) return false;
      const std::lock_guard lock(mailbox_.mutex);
      if (mailbox_.messages[0].empty()) break;
    }
    return true;
  }
  void send(int to, std::string message) override {
    const std::lock_guard lock(mailbox_.mutex);
    mailbox_.messages[to].push_back(std::move(message));
  }
  std::optional<Mail> poll_post() override {
    const std::lock_guard lock(mailbox_.mutex);
    auto& mine = mailbox_.messages[rank_];
    if (mine.empty()) return std::nullopt;
    Mail mail{1 - rank_, std::move(mine.front())};
    mine.pop_front();
    return mail;
  }

  int size() const override { return 2; }
  int rank() const override { return rank_; }
  int host_ranks() const override { return 2; }
  int host_rank() const override { return rank_; }
  std::string host() const override { return "here"; }
  void barrier() override {}
  bool barrier_within(double) override { return true; }
  std::string broadcast(const std::string& text) override { return text; }
  std::vector<std::string> gather(const std::string& mine) override { return {mine}; }
  std::vector<std::string> all_gather(const std::string& mine) override { return {mine}; }
  std::vector<std::string> all_gather_on_host(const std::string& mine) override { return {mine}; }
  std::unique_ptr<TrackComm> split(int, Waiting) override { return nullptr; }
  [[noreturn]] void abort(int exit_code) override { std::exit(exit_code); }

 private:
  Mailbox& mailbox_;
  int rank_;
};

}  // namespace ptrt
