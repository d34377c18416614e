// What the tests of model_io share: small configs, models written from a seed.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/convert.h"
#include "model_io/config/model_config.h"
#include "model_io/file/model_file.h"
#include "model_io/file/model_writer.h"
#include "model_io/shard/random_init.h"
#include "temp_folder.h"

namespace ptrt {

inline nlohmann::json small_config_json() {
  return nlohmann::json::parse(R"({
    "name": "small", "tracks": 2, "layers": 3, "sync_layers": [1, 3],
    "fusion": {"op": "delta_sum", "dispatch_norm": true, "combine_norm": false},
    "hidden_size": 24, "heads": 4, "kv_heads": 2, "head_dim": 6, "ffn_size": 20,
    "vocab_size": 259, "max_context": 64, "norm_eps": 1e-5, "norm_placement": ["pre", "output", "post"],
    "qk_norm": true, "attention_pattern": ["global_rope", "local_nope"], "attention_window": 7,
    "rope_theta": 10000.0, "ffn_pattern": ["dense", "moe"],
    "moe": {"experts": 3, "top_k": 2, "ffn_size": 10, "router_logit_cap": 5.0},
    "tie_embeddings": false, "bos_token_id": 256, "eos_token_ids": [257]})");
}

// The small config with the keys of `changes` in place of its own.
inline ModelConfig small_config(const nlohmann::json& changes = nlohmann::json::object()) {
  nlohmann::json config = small_config_json();
  config.update(changes);
  return parse_config(config.dump(), "small");
}

inline std::vector<TensorSpec> all_tensors(const ModelConfig& config) {
  std::vector<TensorSpec> tensors = shared_tensors(config);
  for (std::int64_t track = 0; track < config.tracks; ++track)
    for (TensorSpec& spec : track_tensors(config, track)) tensors.push_back(std::move(spec));
  return tensors;
}

inline std::vector<std::byte> random_tensor(const ModelConfig& config, const TensorSpec& spec,
                                            std::uint64_t seed, DType dtype) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(spec.elements()) * size_of(dtype));
  random_elements(config, spec, seed, dtype, 0, bytes);
  return bytes;
}

inline void write_tensor(ModelWriter& writer, const ModelConfig& config, const TensorSpec& spec,
                         std::uint64_t seed, DType dtype) {
  writer.write(spec, dtype, [&](std::int64_t first, std::span<std::byte> bytes) {
    random_elements(config, spec, seed, dtype, first, bytes);
  });
}

inline void write_model(const std::string& path, const ModelConfig& config, std::uint64_t seed,
                        DType dtype = DType::float32, bool split = false) {
  ModelWriter writer(path, config, split);
  for (const TensorSpec& spec : all_tensors(config)) write_tensor(writer, config, spec, seed, dtype);
  writer.write_tokenizer({"bytes", {}, {}});
  writer.commit();
}

// The same model with its matrices as int8 or float8.
inline void write_scaled_model(const std::string& path, const ModelConfig& config, std::uint64_t seed,
                               DType dtype, bool split = false) {
  ModelWriter writer(path, config, split);
  Int8Rows int8;
  Float8Rows float8;
  for (const TensorSpec& spec : all_tensors(config)) {
    if (spec.role != WeightRole::matrix) {
      write_tensor(writer, config, spec, seed, DType::bfloat16);
      continue;
    }
    const std::vector<std::byte> content = random_tensor(config, spec, seed, DType::bfloat16);
    const auto row_bytes = static_cast<std::size_t>(spec.shape.back()) * size_of(DType::bfloat16);
    writer.write_scaled(spec, dtype, [&](std::int64_t first, std::int64_t count) {
      const auto rows = std::span(content).subspan(static_cast<std::size_t>(first) * row_bytes,
                                                   static_cast<std::size_t>(count) * row_bytes);
      if (dtype == DType::int8) {
        int8.quantize(spec.weight(DType::bfloat16), first, rows);
        return ModelWriter::ScaledPiece{std::as_bytes(int8.q()), std::as_bytes(int8.scales())};
      }
      float8.quantize(spec.weight(DType::bfloat16), first, rows);
      return ModelWriter::ScaledPiece{std::as_bytes(float8.codes()), std::as_bytes(float8.scales())};
    });
  }
  writer.write_tokenizer({"bytes", {}, {}});
  writer.commit();
}

inline void write_int8_model(const std::string& path, const ModelConfig& config, std::uint64_t seed,
                             bool split = false) {
  write_scaled_model(path, config, seed, DType::int8, split);
}

// The elements of a tensor as they are stored; checks its checksums.
inline std::vector<std::byte> read_tensor(const ModelFile& file, const StoredTensor& stored) {
  const auto reader = file.open(stored);
  std::vector<std::byte> content(stored.bytes);
  reader->content().read(0, content);
  reader->content().verify();
  return content;
}

// The message of the Error that `action` throws, whose exit code must be as given; "" when it throws none.
template <typename Action>
std::string message_of(const Action& action, ExitCode code = ExitCode::bad_input) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "";
}

// Each of `words` stands in `text`.
inline void expect_words(const std::string& text, const std::vector<std::string>& words) {
  for (const std::string& word : words)
    EXPECT_NE(text.find(word), std::string::npos) << word << " is not in: " << text;
}

}  // namespace ptrt
