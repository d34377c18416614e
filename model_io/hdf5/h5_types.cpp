#include "model_io/hdf5/h5_types.h"

#include <fmt/format.h>
#include <hdf5.h>

#include <array>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

// The library has no half of its own.
hid_t half_type(hid_t single) {
  const hid_t half = H5Tcopy(single);
  H5Tset_fields(half, 15, 10, 5, 0, 10);
  H5Tset_size(half, 2);
  H5Tset_ebias(half, 15);
  return half;
}

struct KnownType {
  hid_t little, big;
  H5Type type;
};

// Of types of one byte the two orders are the same type.
const std::array<KnownType, 5>& known_types() {
  static const std::array<KnownType, 5> types{{
      {H5T_IEEE_F32LE, H5T_IEEE_F32BE, H5Type::float32},
      {half_type(H5T_IEEE_F32LE), half_type(H5T_IEEE_F32BE), H5Type::float16},
      {H5T_STD_U16LE, H5T_STD_U16BE, H5Type::uint16},
      {H5T_STD_U8LE, H5T_STD_U8BE, H5Type::uint8},
      {H5T_STD_I8LE, H5T_STD_I8BE, H5Type::int8},
  }};
  return types;
}

// All bits of its bytes are the number's.
bool is_whole(hid_t type) {
  return H5Tget_precision(type) == 8 * H5Tget_size(type) && H5Tget_offset(type) == 0 &&
         (H5Tget_order(type) == H5T_ORDER_LE || H5Tget_order(type) == H5T_ORDER_BE);
}

bool is_standard_float(hid_t type) {
  return classify(type) != H5Type::other || H5Tequal(type, H5T_IEEE_F64LE) > 0 ||
         H5Tequal(type, H5T_IEEE_F64BE) > 0;
}

}  // namespace

// Every property of the type counts (order, precision, offset, sign, exponent, mantissa): a type with
// one damaged bit is none that we know.
H5Type classify(hid_t type) {
  for (const KnownType& known : known_types())
    if (H5Tequal(type, known.little) > 0 || H5Tequal(type, known.big) > 0) return known.type;
  return H5Type::other;
}

std::string name_of_type(hid_t type) {
  const std::size_t bits = 8 * H5Tget_size(type);
  const char* order = bits > 8 && H5Tget_order(type) == H5T_ORDER_BE ? " (big-endian)" : "";
  switch (H5Tget_class(type)) {
    case H5T_FLOAT:
      return fmt::format("{}float{}{}", is_standard_float(type) ? "" : "a non-standard ", bits, order);
    case H5T_INTEGER:
      return fmt::format("{}{}int{}{}", is_whole(type) ? "" : "a non-standard ",
                         H5Tget_sign(type) == H5T_SGN_NONE ? "u" : "", bits, order);
    case H5T_STRING:
      return "strings";
    case H5T_COMPOUND:
      return "a compound type";
    default:
      return "another type";
  }
}

hid_t file_type(H5Type type) {
  for (const KnownType& known : known_types())
    if (known.type == type) return H5Tcopy(known.little);
  throw_failure("internal error: a dataset of no known element type");
}

}  // namespace ptrt
