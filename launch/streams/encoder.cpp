#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <limits>

#include "kernels/base/error.h"
#include "launch/streams/compression.h"

namespace ptrt {
namespace {

constexpr std::size_t kPiece = std::size_t{64} << 10;  // encoded at once
constexpr int kZstdLevel = 3;
constexpr int kZstdWindowLog = 18;  // 256 KiB: `merge` reads many files at once

class Copier final : public Encoder {
 public:
  void encode(std::string_view text, std::string& out) override { out += text; }
  void finish(std::string&) override {}
};

class GzipEncoder final : public Encoder {
 public:
  GzipEncoder() {
    constexpr int kGzip = 15 + 16, kMemory = 8;
    PTRT_CHECK(deflateInit2(&stream_, Z_DEFAULT_COMPRESSION, Z_DEFLATED, kGzip, kMemory,
                            Z_DEFAULT_STRATEGY) == Z_OK);
  }
  ~GzipEncoder() override { deflateEnd(&stream_); }
  GzipEncoder(const GzipEncoder&) = delete;
  GzipEncoder& operator=(const GzipEncoder&) = delete;

  void encode(std::string_view text, std::string& out) override {
    constexpr std::size_t kMost = std::numeric_limits<uInt>::max();
    for (; !text.empty(); text.remove_prefix(std::min(text.size(), kMost)))
      run(text.substr(0, kMost), Z_NO_FLUSH, out);
  }
  void finish(std::string& out) override { run({}, Z_FINISH, out); }

 private:
  void run(std::string_view text, int flush, std::string& out) {
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
    stream_.avail_in = static_cast<uInt>(text.size());
    do {
      const std::size_t before = out.size();
      out.resize(before + kPiece);
      stream_.next_out = reinterpret_cast<Bytef*>(out.data() + before);
      stream_.avail_out = static_cast<uInt>(kPiece);
      const int result = deflate(&stream_, flush);
      PTRT_CHECK(result == Z_OK || result == Z_STREAM_END || result == Z_BUF_ERROR);
      out.resize(before + kPiece - stream_.avail_out);
    } while (stream_.avail_out == 0);
  }

  z_stream stream_{};  // with the header of gzip that has no time and no name
};

class ZstdEncoder final : public Encoder {
 public:
  ZstdEncoder() : stream_(ZSTD_createCStream()) {
    PTRT_CHECK(stream_ != nullptr);
    ZSTD_CCtx_setParameter(stream_, ZSTD_c_compressionLevel, kZstdLevel);
    ZSTD_CCtx_setParameter(stream_, ZSTD_c_windowLog, kZstdWindowLog);
    ZSTD_CCtx_setParameter(stream_, ZSTD_c_checksumFlag, 1);
  }
  ~ZstdEncoder() override { ZSTD_freeCStream(stream_); }
  ZstdEncoder(const ZstdEncoder&) = delete;
  ZstdEncoder& operator=(const ZstdEncoder&) = delete;

  void encode(std::string_view text, std::string& out) override {
    ZSTD_inBuffer in{text.data(), text.size(), 0};
    while (in.pos < in.size) run(in, ZSTD_e_continue, out);
  }
  // Apart from any text: else a short one would be encoded as one whose length is known.
  void finish(std::string& out) override {
    ZSTD_inBuffer none{nullptr, 0, 0};
    if (!begun_) run(none, ZSTD_e_continue, out);
    while (run(none, ZSTD_e_end, out) != 0) {
    }
  }

 private:
  std::size_t run(ZSTD_inBuffer& in, ZSTD_EndDirective how, std::string& out) {
    begun_ = true;
    const std::size_t before = out.size();
    out.resize(before + kPiece);
    ZSTD_outBuffer to{out.data() + before, kPiece, 0};
    const std::size_t left = ZSTD_compressStream2(stream_, &to, &in, how);
    PTRT_CHECK(ZSTD_isError(left) == 0);
    out.resize(before + to.pos);
    return left;
  }

  ZSTD_CStream* stream_;
  bool begun_ = false;
};

}  // namespace

std::unique_ptr<Encoder> make_encoder(Compression compression) {
  if (compression == Compression::gzip) return std::make_unique<GzipEncoder>();
  if (compression == Compression::zstd) return std::make_unique<ZstdEncoder>();
  return std::make_unique<Copier>();
}

std::function<std::string(std::string_view text, bool last)> results_encoding(const std::string& path) {
  const Compression compression = compression_of(path);
  if (compression == Compression::none) return {};
  return [encoder = std::shared_ptr<Encoder>(make_encoder(compression))](std::string_view text, bool last) {
    std::string encoded;
    encoder->encode(text, encoded);
    if (last) encoder->finish(encoded);
    return encoded;
  };
}

}  // namespace ptrt
