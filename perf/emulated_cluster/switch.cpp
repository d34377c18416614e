// An Ethernet switch in user space, for kernels without netem. Frames of TAP devices leave on the port of
// their address after a fixed delay; each port has a fixed rate.
//
//     switch NAME PORTS DELAY_US GBIT
//
// makes the devices NAME1 … NAMEn and prints "ready". Port i is for the address 02:70:74:72:74:ii; every
// other destination goes to all ports. The switch polls without sleeping if a frame is due within kSpin, so the
// delay is exact to a few microseconds. It uses up to one core while frames are in flight.
//
// Kernels leave segmentation and checksums to the devices, as to a network card that offers them: segments
// pass whole, up to 64 KiB, behind the header that tells their size.
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Ns = std::chrono::nanoseconds;

constexpr int kBurst = 32;  // frames read from a port before the others have their turn
constexpr std::size_t kLargestFrame = 70000;
constexpr std::size_t kHeader = 10;  // struct virtio_net_hdr, before each frame

// A buffer of kLargestFrame bytes that frames reuse; frames to several ports share it.
using Buffer = std::shared_ptr<char[]>;

struct Frame {
  Clock::time_point due;
  Buffer data;
  std::size_t bytes;
};

struct Port {
  int descriptor = -1;
  Clock::time_point free{};  // when its link has sent everything before
  std::deque<Frame> queue;
};

int open_tap(const std::string& name) {
  const int descriptor = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
  ifreq request{};
  request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  std::strncpy(request.ifr_name, name.c_str(), IFNAMSIZ - 1);
  if (descriptor >= 0 && ioctl(descriptor, TUNSETIFF, &request) >= 0 &&
      ioctl(descriptor, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4) >= 0)
    return descriptor;
  std::perror(("switch: TAP device " + name).c_str());
  std::exit(1);
}

// The port that a frame is for; -1: all.
int destination(const char* frame, int ports) {
  static constexpr char kPrefix[] = {0x02, 0x70, 0x74, 0x72, 0x74};
  if (std::memcmp(frame + kHeader, kPrefix, sizeof kPrefix) != 0) return -1;
  const int port = static_cast<unsigned char>(frame[kHeader + 5]) - 1;
  return port < ports ? port : -1;
}

class Switch {
 public:
  Switch(const std::string& name, int ports, Ns delay, double gbit) : delay_(delay), gbit_(gbit) {
    for (int i = 1; i <= ports; ++i) ports_.emplace_back().descriptor = open_tap(name + std::to_string(i));
    for (const Port& port : ports_) polled_.push_back({port.descriptor, POLLIN, 0});
  }

  [[noreturn]] void run() {
    for (;;) {
      wait();
      for (std::size_t i = 0; i < ports_.size(); ++i)
        for (int k = 0; k < kBurst && take(i); ++k) {
        }
      for (Port& port : ports_) deliver(port);
    }
  }

 private:
  void wait() {
    auto next = Clock::time_point::max();
    for (const Port& port : ports_)
      if (!port.queue.empty()) next = std::min(next, port.queue.front().due);
    const auto now = Clock::now();
    const std::int64_t left = next > now ? Ns(next - now).count() : 0;
    const timespec sleep{0, std::min<std::int64_t>(left, 999'999'999)};
    ppoll(polled_.data(), polled_.size(), next == Clock::time_point::max() ? nullptr : &sleep, nullptr);
  }

  bool take(std::size_t from) {
    Buffer buffer = unused();
    const ssize_t bytes = read(ports_[from].descriptor, buffer.get(), kLargestFrame);
    if (bytes < static_cast<ssize_t>(kHeader) + 14) return false;
    const int to = destination(buffer.get(), static_cast<int>(ports_.size()));
    const auto now = Clock::now();
    const auto sending = Ns(static_cast<std::int64_t>(static_cast<double>(bytes) * 8 / gbit_));
    for (std::size_t j = 0; j < ports_.size(); ++j) {
      if (j == from || (to >= 0 && static_cast<std::size_t>(to) != j)) continue;
      Port& port = ports_[j];
      port.free = std::max(port.free, now) + sending;
      port.queue.push_back({port.free + delay_, buffer, static_cast<std::size_t>(bytes)});
    }
    return true;
  }

  Buffer unused() {
    for (const Buffer& buffer : buffers_)
      if (buffer.use_count() == 1) return buffer;
    return buffers_.emplace_back(new char[kLargestFrame]);
  }

  static void deliver(Port& port) {
    while (!port.queue.empty() && port.queue.front().due <= Clock::now()) {
      const Frame& frame = port.queue.front();
      if (write(port.descriptor, frame.data.get(), frame.bytes) < 0 && errno == EAGAIN) return;
      port.queue.pop_front();
    }
  }

  Ns delay_;
  double gbit_;
  std::vector<Port> ports_;
  std::vector<pollfd> polled_;
  std::vector<Buffer> buffers_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: switch NAME PORTS DELAY_US GBIT\n");
    return 2;
  }
  prctl(PR_SET_TIMERSLACK, 1);
  prctl(PR_SET_PDEATHSIG, 15);  // goes with whoever started it, and the devices with it
  Switch ports(argv[1], std::atoi(argv[2]), Ns(static_cast<std::int64_t>(1000 * std::atof(argv[3]))),
               std::atof(argv[4]));
  std::puts("ready");
  std::fflush(stdout);
  ports.run();
}
