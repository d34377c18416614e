// Changes to model files that our own writer would never make.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace ptrt {

enum class ForeignType { float32_big_endian, float32, float16, float64, int32, uint16, uint8, int8 };
enum class ForeignLayout { contiguous, compressed_chunks, never_written, half_written };

void remove_object(const std::string& file, const std::string& path);
void remove_attribute(const std::string& file, const std::string& object, const std::string& name);
void set_integer(const std::string& file, const std::string& object, const std::string& name,
                 std::int64_t value);
// As a string of fixed length, padded as `padding` says: '\0' or ' '.
void set_fixed_string(const std::string& file, const std::string& object, const std::string& name,
                      const std::string& value, char padding = '\0');
// A dataset of the given values that replaces the old one (if any), without attributes. half_written: in
// chunks along the first dimension, of which only the first is written.
void replace_dataset(const std::string& file, const std::string& path, ForeignType type,
                     const std::vector<std::int64_t>& shape, const std::vector<double>& values,
                     ForeignLayout layout = ForeignLayout::contiguous);
void replace_by_group(const std::string& file, const std::string& path);
// Of one byte of a contiguous dataset.
void flip_bit(const std::string& file, const std::string& path, std::size_t byte = 0);

}  // namespace ptrt
