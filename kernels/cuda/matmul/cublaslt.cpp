#include "kernels/cuda/matmul/cublaslt.h"

#include <cublasLt.h>

#include <compare>
#include <map>

#include "kernels/base/error.h"
#include "kernels/cuda/base/cuda_check.h"

namespace ptrt {

inline void check_cuda(cublasStatus_t status, const char* call, const char* file, int line) {
  if (status != CUBLAS_STATUS_SUCCESS) throw_cuda_error(cublasLtGetStatusString(status), call, file, line);
}

namespace cuda {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;  // what the algorithms for Hopper need

cudaDataType_t cuda_type(DType type) {
  if (type == DType::float32) return CUDA_R_32F;
  return type == DType::float16 ? CUDA_R_16F : CUDA_R_16BF;
}

// Owners of cuBLASLt's descriptors.
struct Layout {
  cublasLtMatrixLayout_t handle = nullptr;
  // Column-major, as cuBLAS sees matrices; `column`: elements from one column to the next.
  Layout(cudaDataType_t type, std::int64_t rows, std::int64_t columns, std::int64_t column,
         std::int64_t batch, std::int64_t stride) {
    PTRT_CUDA_CHECK(cublasLtMatrixLayoutCreate(&handle, type, static_cast<std::uint64_t>(rows),
                                               static_cast<std::uint64_t>(columns), column));
    const auto count = static_cast<std::int32_t>(batch);
    PTRT_CUDA_CHECK(
        cublasLtMatrixLayoutSetAttribute(handle, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
    PTRT_CUDA_CHECK(cublasLtMatrixLayoutSetAttribute(handle, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                     &stride, sizeof stride));
  }
  ~Layout() { cublasLtMatrixLayoutDestroy(handle); }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
};

struct Description {
  cublasLtMatmulDesc_t handle = nullptr;
  Description() {
    PTRT_CUDA_CHECK(cublasLtMatmulDescCreate(&handle, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    PTRT_CUDA_CHECK(
        cublasLtMatmulDescSetAttribute(handle, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
  }
  ~Description() { cublasLtMatmulDescDestroy(handle); }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;
};

struct Preference {
  cublasLtMatmulPreference_t handle = nullptr;
  Preference() {
    PTRT_CUDA_CHECK(cublasLtMatmulPreferenceCreate(&handle));
    PTRT_CUDA_CHECK(cublasLtMatmulPreferenceSetAttribute(handle, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                         &kWorkspaceBytes, sizeof kWorkspaceBytes));
    // Split-K adds partial sums in float32: in float16 they could exceed its range.
    const std::uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    PTRT_CUDA_CHECK(cublasLtMatmulPreferenceSetAttribute(handle, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                         &reduction, sizeof reduction));
    const std::uint32_t alignment = 16;
    for (const auto matrix :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      PTRT_CUDA_CHECK(cublasLtMatmulPreferenceSetAttribute(handle, matrix, &alignment, sizeof alignment));
  }
  ~Preference() { cublasLtMatmulPreferenceDestroy(handle); }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;
};

struct Shape {
  std::int64_t rows, out, in, batch, w_stride, x_stride, y_stride, y_row;
  DType type, y_type;
  auto operator<=>(const Shape&) const = default;
};

}  // namespace

struct CublasLt::Plans {
  // y seen column-major is [out, rows] = (w seen column-major [in, out])ᵀ · (x seen column-major
  // [in, rows]).
  struct Plan {
    explicit Plan(const Shape& s)
        : w(cuda_type(s.type), s.in, s.out, s.in, s.batch, s.w_stride),
          x(cuda_type(s.type), s.in, s.rows, s.in, s.batch, s.x_stride),
          y(cuda_type(s.y_type), s.out, s.rows, s.y_row, s.batch, s.y_stride) {}
    Layout w, x, y;
    cublasLtMatmulAlgo_t algorithm = {};
  };

  Plans() : workspace(allocate_device(kWorkspaceBytes, "the workspace of cuBLASLt")) {
    PTRT_CUDA_CHECK(cublasLtCreate(&handle));
  }
  ~Plans() {
    if (!device_memory_left()) cublasLtDestroy(handle);
  }

  const Plan& plan_of(const Shape& shape) {
    const auto known = plans.find(shape);
    if (known != plans.end()) return known->second;
    Plan& plan = plans.try_emplace(shape, shape).first->second;
    cublasLtMatmulHeuristicResult_t found = {};
    int count = 0;
    PTRT_CUDA_CHECK(cublasLtMatmulAlgoGetHeuristic(handle, description.handle, plan.w.handle, plan.x.handle,
                                                   plan.y.handle, plan.y.handle, preference.handle, 1, &found,
                                                   &count));
    if (count == 0)
      throw_failure("cuBLASLt has no algorithm for {} GEMMs of [{}, {}] by [{}, {}]", shape.batch, shape.rows,
                    shape.in, shape.in, shape.out);
    plan.algorithm = found.algo;
    return plan;
  }

  cublasLtHandle_t handle = nullptr;
  DevicePointer<std::byte> workspace;
  Description description;
  Preference preference;
  std::map<Shape, Plan> plans;
};

CublasLt::CublasLt() : plans_(std::make_unique<Plans>()) {}
CublasLt::~CublasLt() = default;

void CublasLt::run(const LtProblem& p, cudaStream_t stream) {
  const Plans::Plan& plan = plans_->plan_of(
      {p.rows, p.out, p.in, p.batch, p.w_stride, p.x_stride, p.y_stride, p.y_row, p.type, p.y_type});
  const float one = 1, zero = 0;
  PTRT_CUDA_CHECK(cublasLtMatmul(plans_->handle, plans_->description.handle, &one, p.w, plan.w.handle, p.x,
                                 plan.x.handle, &zero, p.y, plan.y.handle, p.y, plan.y.handle,
                                 &plan.algorithm, plans_->workspace.get(), kWorkspaceBytes, stream));
}

}  // namespace cuda
}  // namespace ptrt
