#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/base/error.h"
#include "launch/streams/compression.h"

namespace ptrt {
namespace {

constexpr std::size_t kPiece = std::size_t{64} << 10;  // of compressed bytes
constexpr int kWindowLog = 27;                         // of zstd frames: 128 MiB

[[noreturn]] void throw_other_kind(const std::string& name, Compression expected) {
  throw_bad_input("{} is not {} data, though its name says so", name, name_of(expected));
}

// Decoded bytes may still be held back when all of the input was taken.
class GzipDecoder final : public Decoder {
 public:
  explicit GzipDecoder(std::string name) : name_(std::move(name)) {
    PTRT_CHECK(inflateInit2(&stream_, kGzip) == Z_OK);
  }
  ~GzipDecoder() override { inflateEnd(&stream_); }
  GzipDecoder(const GzipDecoder&) = delete;
  GzipDecoder& operator=(const GzipDecoder&) = delete;

  std::size_t decode(std::string_view& in, char* to, std::size_t room) override {
    constexpr std::size_t kMost = std::numeric_limits<uInt>::max();
    std::size_t given = 0;
    while (given == 0 && (!in.empty() || holds_)) {
      if (std::exchange(ended_, false)) inflateReset(&stream_);
      const std::size_t offered = std::min(in.size(), kMost), space = std::min(room, kMost);
      stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(in.data()));
      stream_.avail_in = static_cast<uInt>(offered);
      stream_.next_out = reinterpret_cast<Bytef*>(to);
      stream_.avail_out = static_cast<uInt>(space);
      const int result = inflate(&stream_, Z_NO_FLUSH);
      given = space - stream_.avail_out;
      in.remove_prefix(offered - stream_.avail_in);
      ended_ = result == Z_STREAM_END;
      holds_ = !ended_ && given == space;
      members_ += ended_ ? 1 : 0;
      // Z_BUF_ERROR: more input is needed.
      if (result != Z_OK && result != Z_BUF_ERROR && !ended_) fail();
    }
    return given;
  }
  void check_end() const override {
    if (!ended_) throw_bad_input("{} is cut off: it ends within a gzip member", name_);
  }

 private:
  static constexpr int kGzip = 15 + 16;  // the largest window; gzip's header, not zlib's

  [[noreturn]] void fail() const {
    const bool header = stream_.total_out == 0 && stream_.total_in < 10;
    if (members_ == 0 && header) throw_other_kind(name_, Compression::gzip);
    throw_bad_input("{} is damaged in its gzip member {}: {}", name_, members_ + 1,
                    stream_.msg != nullptr ? stream_.msg : "invalid data");
  }

  std::string name_;
  z_stream stream_{};
  bool ended_ = false;  // a member; another may follow
  bool holds_ = false;  // decoded bytes, maybe
  std::int64_t members_ = 0;
};

class ZstdDecoder final : public Decoder {
 public:
  explicit ZstdDecoder(std::string name) : name_(std::move(name)), stream_(ZSTD_createDStream()) {
    PTRT_CHECK(stream_ != nullptr);
    ZSTD_DCtx_setParameter(stream_, ZSTD_d_windowLogMax, kWindowLog);
  }
  ~ZstdDecoder() override { ZSTD_freeDStream(stream_); }
  ZstdDecoder(const ZstdDecoder&) = delete;
  ZstdDecoder& operator=(const ZstdDecoder&) = delete;

  std::size_t decode(std::string_view& in, char* to, std::size_t room) override {
    std::size_t given = 0;
    while (given == 0 && (!in.empty() || holds_)) {
      ZSTD_inBuffer from{in.data(), in.size(), 0};
      ZSTD_outBuffer into{to, room, 0};
      const std::size_t result = ZSTD_decompressStream(stream_, &into, &from);
      if (ZSTD_isError(result) != 0) fail(result);
      in.remove_prefix(from.pos);
      given = into.pos;
      taken_ += from.pos;
      ended_ = result == 0;
      holds_ = !ended_ && given == room;
    }
    return given;
  }
  void check_end() const override {
    if (!ended_) throw_bad_input("{} is cut off: it ends within a zstd frame", name_);
  }

 private:
  [[noreturn]] void fail(std::size_t result) const {
    if (taken_ == 0 && ZSTD_getErrorCode(result) == ZSTD_error_prefix_unknown)
      throw_other_kind(name_, Compression::zstd);
    throw_bad_input("{} is damaged, or cannot be read: {}", name_, ZSTD_getErrorName(result));
  }

  std::string name_;
  ZSTD_DStream* stream_;
  bool ended_ = false;  // a frame; another may follow
  bool holds_ = false;  // decoded bytes, maybe
  std::size_t taken_ = 0;
};

class DecodedInput final : public ByteInput {
 public:
  DecodedInput(std::unique_ptr<ByteInput> input, std::unique_ptr<Decoder> decoder)
      : input_(std::move(input)), decoder_(std::move(decoder)), piece_(kPiece, '\0') {}

  std::size_t read(char* to, std::size_t bytes) override {
    for (;;) {
      if (const std::size_t given = decoder_->decode(left_, to, bytes); given > 0) return given;
      const std::size_t got = input_->read(piece_.data(), piece_.size());
      if (got == 0) {
        decoder_->check_end();
        return 0;
      }
      left_ = std::string_view(piece_).substr(0, got);
    }
  }

 private:
  std::unique_ptr<ByteInput> input_;
  std::unique_ptr<Decoder> decoder_;
  std::string piece_;
  std::string_view left_;  // of it
};

}  // namespace

Compression compression_of(std::string_view path) {
  if (path.ends_with(".gz")) return Compression::gzip;
  if (path.ends_with(".zst")) return Compression::zstd;
  return Compression::none;
}

Compression compression_by_content(std::string_view begin) {
  if (begin.starts_with("\x1f\x8b")) return Compression::gzip;
  if (begin.starts_with("\x28\xb5\x2f\xfd")) return Compression::zstd;
  return Compression::none;
}

const char* name_of(Compression compression) {
  return compression == Compression::gzip ? "gzip" : compression == Compression::zstd ? "zstd" : "plain";
}

std::unique_ptr<Decoder> make_decoder(Compression compression, std::string name) {
  PTRT_CHECK(compression != Compression::none);
  if (compression == Compression::gzip) return std::make_unique<GzipDecoder>(std::move(name));
  return std::make_unique<ZstdDecoder>(std::move(name));
}

std::unique_ptr<ByteInput> decoded(std::unique_ptr<ByteInput> input, Compression compression,
                                   const std::string& name) {
  if (compression == Compression::none) return input;
  return std::make_unique<DecodedInput>(std::move(input), make_decoder(compression, name));
}

}  // namespace ptrt
