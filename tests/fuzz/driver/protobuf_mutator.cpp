#include "driver/protobuf_mutator.h"

#include <array>
#include <optional>
#include <vector>

#include "driver/target.h"

namespace ptrt::fuzz {
namespace {

// Wire types of https://protobuf.dev/programming-guides/encoding.
constexpr unsigned kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;

struct Field {
  std::uint64_t tag = 0;    // number << 3 | wire type
  std::uint64_t value = 0;  // of a varint
  std::string bytes;        // of the other types

  unsigned type() const { return static_cast<unsigned>(tag & 7); }
};

std::optional<std::uint64_t> read_varint(std::string_view& bytes) {
  std::uint64_t value = 0;
  for (unsigned shift = 0; shift < 64 && !bytes.empty(); shift += 7) {
    const auto byte = static_cast<unsigned char>(bytes[0]);
    bytes.remove_prefix(1);
    value |= std::uint64_t{byte & 0x7fu} << shift;
    if (byte < 0x80) return value;
  }
  return {};
}

void write_varint(std::string& bytes, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  bytes += static_cast<char>(value);
}

// None where the bytes are no message.
std::optional<std::vector<Field>> read_message(std::string_view bytes) {
  std::vector<Field> fields;
  while (!bytes.empty()) {
    Field field;
    const auto tag = read_varint(bytes);
    if (!tag || *tag < 8) return {};
    field.tag = *tag;
    std::uint64_t length = 0;
    if (field.type() == kVarint || field.type() == kBytes) {
      const auto value = read_varint(bytes);
      if (!value) return {};
      (field.type() == kVarint ? field.value : length) = *value;
    } else if (field.type() == kFixed64 || field.type() == kFixed32) {
      length = field.type() == kFixed64 ? 8 : 4;
    } else {
      return {};
    }
    if (length > bytes.size()) return {};
    field.bytes = bytes.substr(0, length);
    bytes.remove_prefix(length);
    fields.push_back(std::move(field));
  }
  return fields;
}

std::string write_message(const std::vector<Field>& fields) {
  std::string bytes;
  for (const Field& field : fields) {
    write_varint(bytes, field.tag);
    if (field.type() == kVarint) write_varint(bytes, field.value);
    if (field.type() == kBytes) write_varint(bytes, field.bytes.size());
    bytes += field.bytes;
  }
  return bytes;
}

std::uint64_t other_number(std::uint64_t value, Random& random) {
  constexpr std::array<std::uint64_t, 8> kNumbers{0, 1, 2, 6, 255, INT32_MAX, 0xffffffff, UINT64_MAX};
  return random.one_in(3)   ? random.pick(kNumbers)
         : random.one_in(2) ? value ^ (1u << random.below(20))
                            : random.below(10);
}

void change_field(Field& field, Random& random);

void change_message(std::vector<Field>& fields, Random& random) {
  const std::size_t at = random.below(fields.size()), to = random.below(fields.size());
  const auto place = fields.begin() + static_cast<std::ptrdiff_t>(at);
  switch (fields.empty() ? 99 : random.below(12)) {
    case 0:
      fields.erase(place);
      break;
    case 1:
      fields.insert(place, Field(fields[to]));
      break;
    case 2:
      std::swap(fields[at], fields[to]);
      break;
    case 3:
      fields[at].tag = (1 + random.below(20)) << 3 | fields[at].type();
      break;
    case 4:
      fields.push_back({(1 + random.below(52)) << 3 | kVarint, other_number(0, random), {}});
      break;
    case 99:
      break;
    default:
      change_field(fields[at], random);
  }
}

void change_field(Field& field, Random& random) {
  constexpr std::array<std::string_view, 8> kFloats{{{"\0\0\0\0", 4},
                                                     {"\0\0\x80\x7f", 4},
                                                     {"\0\0\x80\xff", 4},
                                                     {"\0\0\xc0\x7f", 4},
                                                     {"\xff\xff\x7f\x7f", 4},
                                                     {"\0\0\x80\xbf", 4},
                                                     {"\x01\0\0\0", 4},
                                                     {"\0\0\x80\x3f", 4}}};
  if (field.type() == kVarint) {
    field.value = other_number(field.value, random);
  } else if (field.type() == kFixed32 && random.one_in(2)) {
    field.bytes = random.pick(kFloats);
  } else if (field.type() != kBytes) {
    field.bytes[random.below(field.bytes.size())] ^= static_cast<char>(1 << random.below(8));
  } else if (auto inner = read_message(field.bytes); inner && !inner->empty() && !random.one_in(4)) {
    change_message(*inner, random);
    field.bytes = write_message(*inner);
  } else {
    field.bytes = mutate_bytes(std::move(field.bytes), random);
  }
}

}  // namespace

std::string mutate_protobuf(const std::string& message, Random& random) {
  auto fields = read_message(message);
  if (!fields || fields->empty() || random.one_in(8)) return mutate_bytes(message, random);
  for (std::size_t left = 1 + random.below(3); left > 0; --left) change_message(*fields, random);
  // The few fields behind the pieces, which are most of them, say how the model works.
  if (random.one_in(2) && !fields->empty()) change_field(fields->back(), random);
  return write_message(*fields);
}

}  // namespace ptrt::fuzz
