#include "model_io/file/h5_types.h"

#include <fmt/format.h>
#include <hdf5.h>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

bool is_float(hid_t type, std::size_t bytes, std::size_t exponent_bits, std::size_t mantissa_bits) {
  if (H5Tget_class(type) != H5T_FLOAT || H5Tget_size(type) != bytes) return false;
  std::size_t sign = 0, exponent_at = 0, exponent = 0, mantissa_at = 0, mantissa = 0;
  H5Tget_fields(type, &sign, &exponent_at, &exponent, &mantissa_at, &mantissa);
  return sign == 8 * bytes - 1 && exponent == exponent_bits && mantissa == mantissa_bits &&
         mantissa_at == 0 && exponent_at == mantissa_bits &&
         H5Tget_ebias(type) == (std::size_t{1} << (exponent_bits - 1)) - 1;
}

}  // namespace

H5Type classify(hid_t type) {
  if (is_float(type, 4, 8, 23)) return H5Type::float32;
  if (is_float(type, 2, 5, 10)) return H5Type::float16;
  if (H5Tget_class(type) != H5T_INTEGER) return H5Type::other;
  const bool is_unsigned = H5Tget_sign(type) == H5T_SGN_NONE;
  if (H5Tget_size(type) == 1) return is_unsigned ? H5Type::uint8 : H5Type::int8;
  return is_unsigned && H5Tget_size(type) == 2 ? H5Type::uint16 : H5Type::other;
}

std::string name_of_type(hid_t type) {
  const std::size_t bits = 8 * H5Tget_size(type);
  const char* order = bits > 8 && H5Tget_order(type) == H5T_ORDER_BE ? " (big-endian)" : "";
  switch (H5Tget_class(type)) {
    case H5T_FLOAT:
      return fmt::format("float{}{}", bits, order);
    case H5T_INTEGER:
      return fmt::format("{}int{}{}", H5Tget_sign(type) == H5T_SGN_NONE ? "u" : "", bits, order);
    case H5T_STRING:
      return "strings";
    case H5T_COMPOUND:
      return "a compound type";
    default:
      return "another type";
  }
}

hid_t file_type(H5Type type) {
  switch (type) {
    case H5Type::float32:
      return H5Tcopy(H5T_IEEE_F32LE);
    case H5Type::uint16:
      return H5Tcopy(H5T_STD_U16LE);
    case H5Type::uint8:
      return H5Tcopy(H5T_STD_U8LE);
    case H5Type::int8:
      return H5Tcopy(H5T_STD_I8LE);
    case H5Type::float16: {
      const hid_t half = H5Tcopy(H5T_IEEE_F32LE);  // the library has no half of its own
      H5Tset_fields(half, 15, 10, 5, 0, 10);
      H5Tset_size(half, 2);
      H5Tset_ebias(half, 15);
      return half;
    }
    case H5Type::other:
      break;
  }
  throw_failure("internal error: a dataset of no known element type");
}

}  // namespace ptrt
