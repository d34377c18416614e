"""Spack recipe of ptrt: copy the folder to packages/ptrt of a Spack repository (docs/INSTALL.md).

Checked by tests/packaging/test_package.py against a stand-in of Spack's directives; not run by Spack itself yet.
"""

from spack.package import *


class Ptrt(CMakePackage, CudaPackage):
    """Runtime for Parallel Track transformers: one MPI rank per track, weights in HDF5."""

    # Where the site keeps the sources: `spack dev-build ptrt@main` builds a checkout as it lies.
    homepage = "https://localhost/ptrt"
    git = "file:///srv/git/ptrt"

    version("main", branch="main")

    depends_on("c", type="build")
    depends_on("cxx", type="build")
    depends_on("cmake@3.25:", type="build")
    depends_on("pkgconfig", type="build")
    depends_on("mpi")
    depends_on("hdf5~mpi")
    depends_on("cli11@2.1.2:", type="build")
    depends_on("nlohmann-json@3.11:", type="build")
    depends_on("fmt@9:")
    depends_on("highway@1.0.3:")
    depends_on("hwloc@2:")
    depends_on("isa-l")
    depends_on("xxhash")
    depends_on("zlib-api")
    depends_on("zstd")
    depends_on("sentencepiece")
    depends_on("icu4c@72:")
    depends_on("oniguruma@6.9.8:")
    depends_on("python@3.9:", type="run")
    depends_on("nccl", when="+cuda")

    conflicts("cuda_arch=none", when="+cuda", msg="ptrt+cuda needs cuda_arch, e.g. cuda_arch=90")

    def cmake_args(self):
        return [
            self.define_from_variant("PTRT_CUDA", "cuda"),
            self.define("PTRT_STATIC_HDF5", False),
            self.define("PTRT_WERROR", False),
            self.define("BUILD_TESTING", False),
        ]

    def setup_build_environment(self, env):
        # Site settings of Makefile.inc; the environment comes before the file.
        if self.spec.satisfies("+cuda"):
            env.set("CUDA_HOME", self.spec["cuda"].prefix)
            env.set("NCCL_HOME", self.spec["nccl"].prefix)
            env.set("CUDA_ARCHITECTURES", ";".join(self.spec.variants["cuda_arch"].value))
