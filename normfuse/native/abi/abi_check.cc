// Compares abi/onnxruntime_abi.h with onnxruntime's own header. Compiled where NORMFUSE_ORT_INCLUDE_DIR names one;
// nothing of it runs.
#include <onnxruntime_c_api.h>

#include <cstddef>

#include "abi/onnxruntime_abi.h"

namespace {

namespace own = normfuse::ort;

template <std::size_t ours, std::size_t theirs>
constexpr bool same() {
    static_assert(ours == theirs, "a member lies elsewhere in onnxruntime's header");
    return true;
}

#define SAME_SLOT(member) static_assert(same<offsetof(own::Api, member), offsetof(OrtApi, member)>())
#define SAME_FIELD(member) static_assert(same<offsetof(own::CustomOp, member), offsetof(OrtCustomOp, member)>())

SAME_SLOT(CreateStatus);
SAME_SLOT(GetErrorMessage);
SAME_SLOT(CreateCustomOpDomain);
SAME_SLOT(CustomOpDomain_Add);
SAME_SLOT(AddCustomOpDomain);
SAME_SLOT(GetTensorMutableData);
SAME_SLOT(GetTensorElementType);
SAME_SLOT(GetDimensionsCount);
SAME_SLOT(GetDimensions);
SAME_SLOT(GetSymbolicDimensions);
SAME_SLOT(GetTensorTypeAndShape);
SAME_SLOT(KernelInfoGetAttribute_float);
SAME_SLOT(KernelInfoGetAttribute_int64);
SAME_SLOT(KernelInfoGetAttribute_string);
SAME_SLOT(KernelContext_GetInputCount);
SAME_SLOT(KernelContext_GetOutputCount);
SAME_SLOT(KernelContext_GetInput);
SAME_SLOT(KernelContext_GetOutput);
SAME_SLOT(ReleaseStatus);
SAME_SLOT(ReleaseTensorTypeAndShapeInfo);
SAME_SLOT(AddSessionConfigEntry);
SAME_SLOT(KernelContext_GetGPUComputeStream);
SAME_SLOT(HasSessionConfigEntry);
SAME_SLOT(KernelInfo_GetNodeName);
SAME_SLOT(KernelInfoGetConstantInput_tensor);
SAME_SLOT(ShapeInferContext_GetInputTypeShape);
SAME_SLOT(ShapeInferContext_SetOutputTypeShape);
SAME_SLOT(KernelContext_ParallelFor);
#if ORT_API_VERSION >= 24
SAME_SLOT(GetTensorElementTypeAndShapeDataReference);
#endif

SAME_FIELD(version);
SAME_FIELD(CreateKernel);
SAME_FIELD(GetName);
SAME_FIELD(GetExecutionProviderType);
SAME_FIELD(GetInputType);
SAME_FIELD(GetInputTypeCount);
SAME_FIELD(GetOutputType);
SAME_FIELD(GetOutputTypeCount);
SAME_FIELD(KernelCompute);
SAME_FIELD(KernelDestroy);
SAME_FIELD(GetInputCharacteristic);
SAME_FIELD(GetOutputCharacteristic);
SAME_FIELD(GetInputMemoryType);
SAME_FIELD(GetVariadicInputMinArity);
SAME_FIELD(GetVariadicInputHomogeneity);
SAME_FIELD(GetVariadicOutputMinArity);
SAME_FIELD(GetVariadicOutputHomogeneity);
SAME_FIELD(CreateKernelV2);
SAME_FIELD(KernelComputeV2);
SAME_FIELD(InferOutputShapeFn);
SAME_FIELD(GetStartVersion);
SAME_FIELD(GetEndVersion);
SAME_FIELD(GetMayInplace);
SAME_FIELD(ReleaseMayInplace);
SAME_FIELD(GetAliasMap);
SAME_FIELD(ReleaseAliasMap);

static_assert(ORT_API_VERSION >= own::kApiVersion);
static_assert(static_cast<int>(own::ErrorCode::kFail) == ORT_FAIL);
static_assert(static_cast<int>(own::ErrorCode::kInvalidArgument) == ORT_INVALID_ARGUMENT);
static_assert(static_cast<int>(own::ElementType::kFloat) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
static_assert(static_cast<int>(own::ElementType::kFloat16) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
static_assert(static_cast<int>(own::ElementType::kDouble) == ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE);
static_assert(static_cast<int>(own::ElementType::kBFloat16) == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16);
static_assert(static_cast<int>(own::Characteristic::kRequired) == INPUT_OUTPUT_REQUIRED);
static_assert(static_cast<int>(own::Characteristic::kOptional) == INPUT_OUTPUT_OPTIONAL);
static_assert(static_cast<int>(own::MemoryType::kDefault) == OrtMemTypeDefault);
static_assert(offsetof(own::ApiBase, GetVersionString) == offsetof(OrtApiBase, GetVersionString));

}  // namespace
