// The part of onnxruntime's C interface that custom operators use: the names are onnxruntime's, the layout is fixed.
//
// onnxruntime's table of functions only ever grows at its end, and an operator says with `version` how far its own
// struct may be read, so one library serves every runtime from version 1.17 on. The headers of onnxruntime come with no
// wheel; abi_check.cc compares this file with them where they are found.
#pragma once

#include <cstddef>
#include <cstdint>

namespace normfuse::ort {

inline constexpr std::uint32_t kApiVersion = 17;        // the first with ParallelFor and with shape inference
inline constexpr std::uint32_t kReferenceVersion = 24;  // the first with GetTensorElementTypeAndShapeDataReference

struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct ShapeInferContext;
struct Value;
struct TensorTypeAndShapeInfo;

enum class ErrorCode : int { kFail = 1, kInvalidArgument = 2 };

enum class ElementType : int { kUndefined = 0, kFloat = 1, kFloat16 = 10, kDouble = 11, kBFloat16 = 16 };

enum class Characteristic : int { kRequired = 0, kOptional = 1 };

enum class MemoryType : int { kDefault = 0 };

using Unused = void (*)();

// OrtApi: the functions that we call at their places, the others as gaps.
struct Api {
    Status* (*CreateStatus)(ErrorCode code, const char* message);
    Unused gap_1[1];
    const char* (*GetErrorMessage)(const Status* status);
    Unused gap_3[23];
    Status* (*CreateCustomOpDomain)(const char* domain, CustomOpDomain** out);
    Status* (*CustomOpDomain_Add)(CustomOpDomain* domain, const struct CustomOp* op);
    Status* (*AddCustomOpDomain)(SessionOptions* options, CustomOpDomain* domain);
    Unused gap_29[22];
    Status* (*GetTensorMutableData)(Value* value, void** out);
    Unused gap_52[8];
    Status* (*GetTensorElementType)(const TensorTypeAndShapeInfo* info, ElementType* out);
    Status* (*GetDimensionsCount)(const TensorTypeAndShapeInfo* info, std::size_t* out);
    Status* (*GetDimensions)(const TensorTypeAndShapeInfo* info, std::int64_t* values, std::size_t count);
    Status* (*GetSymbolicDimensions)(const TensorTypeAndShapeInfo* info, const char** names, std::size_t count);
    Unused gap_64[1];
    Status* (*GetTensorTypeAndShape)(const Value* value, TensorTypeAndShapeInfo** out);
    Unused gap_66[19];
    Status* (*KernelInfoGetAttribute_float)(const KernelInfo* info, const char* name, float* out);
    Status* (*KernelInfoGetAttribute_int64)(const KernelInfo* info, const char* name, std::int64_t* out);
    Status* (*KernelInfoGetAttribute_string)(const KernelInfo* info, const char* name, char* out, std::size_t* size);
    Status* (*KernelContext_GetInputCount)(const KernelContext* context, std::size_t* out);
    Status* (*KernelContext_GetOutputCount)(const KernelContext* context, std::size_t* out);
    Status* (*KernelContext_GetInput)(const KernelContext* context, std::size_t index, const Value** out);
    Status* (*KernelContext_GetOutput)(KernelContext* context, std::size_t index, const std::int64_t* dimensions,
                                       std::size_t count, Value** out);
    Unused gap_92[1];
    void (*ReleaseStatus)(Status* status);
    Unused gap_94[5];
    void (*ReleaseTensorTypeAndShapeInfo)(TensorTypeAndShapeInfo* info);
    Unused gap_100[30];
    Status* (*AddSessionConfigEntry)(SessionOptions* options, const char* key, const char* value);
    Unused gap_131[62];
    Status* (*KernelContext_GetGPUComputeStream)(const KernelContext* context, void** out);
    Unused gap_194[43];
    Status* (*HasSessionConfigEntry)(const SessionOptions* options, const char* key, int* out);
    Unused gap_238[6];
    Status* (*KernelInfo_GetNodeName)(const KernelInfo* info, char* out, std::size_t* size);
    Unused gap_245[4];
    Status* (*KernelInfoGetConstantInput_tensor)(const KernelInfo* info, std::size_t index, int* is_constant,
                                                 const Value** out);
    Unused gap_250[18];
    Status* (*ShapeInferContext_GetInputTypeShape)(const ShapeInferContext* context, std::size_t index,
                                                   TensorTypeAndShapeInfo** out);
    Unused gap_269[1];
    Status* (*ShapeInferContext_SetOutputTypeShape)(const ShapeInferContext* context, std::size_t index,
                                                    const TensorTypeAndShapeInfo* info);
    Unused gap_271[3];
    Status* (*KernelContext_ParallelFor)(const KernelContext* context, void (*work)(void*, std::size_t),
                                         std::size_t total, std::size_t batches, void* data);
    // From here on the table is there only where GetApi(kReferenceVersion) is.
    Unused gap_275[139];
    Status* (*GetTensorElementTypeAndShapeDataReference)(const Value* value, ElementType* type,
                                                         const std::int64_t** dimensions, std::size_t* count);
};

// OrtApiBase: what onnxruntime hands to RegisterCustomOps.
struct ApiBase {
    const Api* (*GetApi)(std::uint32_t version);
    const char* (*GetVersionString)();
};

// OrtCustomOp: the schema and the callbacks of one operator for one type. A null callback has onnxruntime's default.
struct CustomOp {
    std::uint32_t version;
    void* (*CreateKernel)(const CustomOp* op, const Api* api, const KernelInfo* info);
    const char* (*GetName)(const CustomOp* op);
    const char* (*GetExecutionProviderType)(const CustomOp* op);
    ElementType (*GetInputType)(const CustomOp* op, std::size_t index);
    std::size_t (*GetInputTypeCount)(const CustomOp* op);
    ElementType (*GetOutputType)(const CustomOp* op, std::size_t index);
    std::size_t (*GetOutputTypeCount)(const CustomOp* op);
    void (*KernelCompute)(void* kernel, KernelContext* context);
    void (*KernelDestroy)(void* kernel);
    Characteristic (*GetInputCharacteristic)(const CustomOp* op, std::size_t index);
    Characteristic (*GetOutputCharacteristic)(const CustomOp* op, std::size_t index);
    MemoryType (*GetInputMemoryType)(const CustomOp* op, std::size_t index);
    int (*GetVariadicInputMinArity)(const CustomOp* op);
    int (*GetVariadicInputHomogeneity)(const CustomOp* op);
    int (*GetVariadicOutputMinArity)(const CustomOp* op);
    int (*GetVariadicOutputHomogeneity)(const CustomOp* op);
    Status* (*CreateKernelV2)(const CustomOp* op, const Api* api, const KernelInfo* info, void** kernel);
    Status* (*KernelComputeV2)(void* kernel, KernelContext* context);
    Status* (*InferOutputShapeFn)(const CustomOp* op, ShapeInferContext* context);
    int (*GetStartVersion)(const CustomOp* op);
    int (*GetEndVersion)(const CustomOp* op);
    std::size_t (*GetMayInplace)(int** inputs, int** outputs);
    void (*ReleaseMayInplace)(int* inputs, int* outputs);
    std::size_t (*GetAliasMap)(int** inputs, int** outputs);
    void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

static_assert(offsetof(Api, KernelContext_ParallelFor) == 274 * sizeof(void*), "a gap of the table has the wrong size");
static_assert(sizeof(Api) == 415 * sizeof(void*), "onnxruntime 1.24 has 415 functions");
static_assert(sizeof(CustomOp) == 26 * sizeof(void*), "the struct of an operator has 26 words");

}  // namespace normfuse::ort
