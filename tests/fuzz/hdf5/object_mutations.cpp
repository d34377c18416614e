#include <hdf5.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <iterator>

#include "kernels/base/error.h"
#include "mutations.h"
#include "with_parents.h"

namespace ptrt {
namespace {

std::size_t below(Random& random, std::size_t n) {
  return std::uniform_int_distribution<std::size_t>(0, n - 1)(random);
}

// Changes one file. Errors of the library (something is there already) leave it as it was.
class ObjectEditor {
 public:
  ObjectEditor(const std::string& path, const Content& content, Random& random)
      : content_(content), random_(random), file_(H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT)) {
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  ~ObjectEditor() { H5Fclose(file_); }

  ObjectChange change() {
    const std::string name = pick();
    switch (below(random_, 8)) {
      case 0:
        return replace_dataset(name);
      case 1:
        return store_elsewhere(name);
      case 2:
        return make_virtual(name);
      case 3:
        return link(name);
      case 4:
        H5Ldelete(file_, name.c_str(), H5P_DEFAULT);
        if (below(random_, 2) == 0) H5Gclose(H5Gcreate2(file_, name.c_str(), with_parents(), 0, 0));
        return {"removed " + name};
      default:
        return set_attribute(name);
    }
  }

 private:
  // A tensor that lies in this file, which may be a shard.
  std::string pick() {
    std::string name;
    for (int attempt = 0; attempt < 50; ++attempt) {
      name = std::next(content_.tensors.begin(),
                       static_cast<std::ptrdiff_t>(below(random_, content_.tensors.size())))
                 ->first;
      if (H5Oexists_by_name(file_, name.c_str(), H5P_DEFAULT) > 0) break;
    }
    return name;
  }

  std::vector<hsize_t> shape_of(const std::string& name) {
    const hid_t dataset = H5Dopen2(file_, name.c_str(), H5P_DEFAULT), space = H5Dget_space(dataset);
    std::vector<hsize_t> shape(static_cast<std::size_t>(std::max(0, H5Sget_simple_extent_ndims(space))));
    H5Sget_simple_extent_dims(space, shape.data(), nullptr);
    H5Sclose(space), H5Dclose(dataset);
    return shape;
  }

  hid_t make(const std::string& name, hid_t type, const std::vector<hsize_t>& shape, hid_t properties) {
    H5Ldelete(file_, name.c_str(), H5P_DEFAULT);
    const hid_t space = H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr);
    const hid_t dataset = H5Dcreate2(file_, name.c_str(), type, space, with_parents(), properties, 0);
    H5Sclose(space), H5Pclose(properties);
    return dataset;
  }

  ObjectChange replace_dataset(const std::string& name) {
    std::vector<hsize_t> shape = shape_of(name);
    if (shape.empty()) return {"nothing"};
    if (below(random_, 4) == 0) shape[0] = 1 + below(random_, 300);
    if (below(random_, 8) == 0) shape.push_back(1);
    const std::array<hid_t, 9> types{H5T_IEEE_F32LE, H5T_IEEE_F32BE,     H5T_IEEE_F64LE,
                                     H5T_STD_U16LE,  H5T_STD_I8LE,       H5T_STD_U8LE,
                                     H5T_STD_I32BE,  H5T_NATIVE_LDOUBLE, H5T_STD_B16LE};
    const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
    if (below(random_, 2) == 0) {
      std::vector<hsize_t> chunk = shape;
      for (hsize_t& extent : chunk) extent = 1 + below(random_, extent);
      H5Pset_chunk(properties, static_cast<int>(chunk.size()), chunk.data());
      if (below(random_, 2) == 0) H5Pset_shuffle(properties);
      if (below(random_, 2) == 0) H5Pset_deflate(properties, 6);
      if (below(random_, 2) == 0) H5Pset_fletcher32(properties);
      if (below(random_, 4) == 0) H5Pset_nbit(properties);
    } else if (below(random_, 4) == 0) {
      H5Pset_layout(properties, H5D_COMPACT);
    }
    const hid_t dataset =
        make(name, types[below(random_, 3) == 0 ? below(random_, types.size()) : 0], shape, properties);
    std::size_t elements = 1;
    for (const hsize_t extent : shape) elements *= extent;
    std::vector<double> values(elements);
    for (double& value : values) value = static_cast<double>(below(random_, 100)) / 8;
    if (below(random_, 8) != 0) H5Dwrite(dataset, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, 0, values.data());
    H5Dclose(dataset);
    return {"replaced " + name};
  }

  ObjectChange store_elsewhere(const std::string& name) {
    const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
    const std::array<const char*, 4> files{"/etc/passwd", "/dev/zero", "m.h5", "../float32/m.h5"};
    H5Pset_external(properties, files[below(random_, files.size())], 0, H5F_UNLIMITED);
    H5Dclose(make(name, H5T_IEEE_F32LE, shape_of(name), properties));
    return {"external storage of " + name, true};
  }

  ObjectChange make_virtual(const std::string& name) {
    const std::vector<hsize_t> shape = shape_of(name);
    if (shape.empty()) return {"nothing"};
    const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
    const hid_t space = H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr);
    const std::array<const char*, 3> files{".", "/etc/passwd", "../float32/m.h5"};
    H5Pset_virtual(properties, space, files[below(random_, files.size())], "/shared/embedding", space);
    H5Sclose(space);
    H5Dclose(make(name, H5T_IEEE_F32LE, shape, properties));
    return {"virtual " + name, true};
  }

  ObjectChange link(const std::string& name) {
    const std::string group = name.substr(0, name.rfind('/'));
    const std::string from = below(random_, 2) == 0 ? name : group;
    const std::string to = below(random_, 3) == 0 ? from : pick();
    switch (below(random_, 4)) {
      case 0:  // moved away, so that the link is right where it leads to the new place
        H5Lmove(file_, from.c_str(), file_, "/moved", H5P_DEFAULT, H5P_DEFAULT);
        H5Lcreate_soft(below(random_, 2) == 0 ? "/moved" : to.c_str(), file_, from.c_str(), with_parents(),
                       0);
        return {"soft link " + from};
      case 1:
        if (below(random_, 2) == 0) H5Ldelete(file_, from.c_str(), H5P_DEFAULT);
        H5Lcreate_hard(file_, to.c_str(), file_, from.c_str(), with_parents(), 0);
        return {"hard link " + from + " to " + to};
      case 2:
        H5Ldelete(file_, from.c_str(), H5P_DEFAULT);
        H5Lcreate_external("m.h5", to.c_str(), file_, from.c_str(), with_parents(), 0);
        return {"external link " + from + " to " + to};
      default: {
        const std::array<const char*, 3> files{"/etc/passwd", "../float32/m.h5", "x/../m.h5"};
        H5Ldelete(file_, from.c_str(), H5P_DEFAULT);
        H5Lcreate_external(files[below(random_, files.size())], from.c_str(), file_, from.c_str(),
                           with_parents(), 0);
        return {"external link out of the folder at " + from, true};
      }
    }
  }

  ObjectChange set_attribute(const std::string& name) {
    const std::array<std::string, 4> objects{name, "/", "/tokenizer", name};
    const std::array<const char*, 7> names{"crc32c", "dtype",  "layout",        "kind",
                                           "config", "format", "format_version"};
    const std::array<std::string, 8> texts{
        "", "ptrt", "bfloat16", "panels16.v1", "float32", "\xff{}", std::string(300, 'x'), content_.config};
    const std::string& object = objects[below(random_, objects.size())];
    const char* attribute_name = names[below(random_, names.size())];
    const hid_t holder = H5Oopen(file_, object.c_str(), H5P_DEFAULT);
    if (holder < 0) return {"nothing"};
    H5Adelete(holder, attribute_name);
    const hsize_t three = 3;
    const hid_t space = below(random_, 8) == 0 ? H5Screate_simple(1, &three, nullptr) : H5Screate(H5S_SCALAR);
    const bool variable = below(random_, 2) == 0, number = below(random_, 3) == 0;
    const std::string text = texts[below(random_, texts.size())] + std::string(16, '\0');
    const hid_t type = H5Tcopy(number ? H5T_STD_U32LE : H5T_C_S1);
    if (!number) H5Tset_size(type, variable ? H5T_VARIABLE : text.size());
    const hid_t attribute = H5Acreate2(holder, attribute_name, type, space, 0, 0);
    const std::array<const char*, 3> pointers{text.c_str(), text.c_str(), text.c_str()};
    const std::string fixed = text + text + text;
    H5Awrite(attribute, type,
             number || !variable ? static_cast<const void*>(fixed.data())
                                 : static_cast<const void*>(pointers.data()));
    H5Aclose(attribute), H5Tclose(type), H5Sclose(space), H5Oclose(holder);
    return {"attribute " + std::string(attribute_name) + " of " + object};
  }

  const Content& content_;
  Random& random_;
  hid_t file_;
};

}  // namespace

// In a process of its own: an edit that goes wrong in the library must not spoil the next ones.
ObjectChange change_object(const std::string& file, const Content& content, Random& random) {
  Random edit(random());
  int ends[2];
  if (::pipe(ends) != 0) throw_failure("no pipe");
  const pid_t child = ::fork();
  if (child == 0) {
    const ObjectChange change = ObjectEditor(file, content, edit).change();
    const std::string text = (change.forbidden ? "!" : " ") + change.what;
    [[maybe_unused]] const ssize_t put = ::write(ends[1], text.data(), text.size());
    ::_exit(0);
  }
  ::close(ends[1]);
  char text[1000];
  const ssize_t got = ::read(ends[0], text, sizeof text);
  ::close(ends[0]);
  ::waitpid(child, nullptr, 0);
  if (got < 1) return {"an edit that failed"};
  return {std::string(text + 1, static_cast<std::size_t>(got - 1)), text[0] == '!'};
}

}  // namespace ptrt
