// Vectors of one instruction set, and how the element types are loaded into and stored from them.
//
// Compiled once per instruction set. Everything here and in the kernels has internal linkage, and nothing of the
// standard library is called: an inline function that is shared between the objects would be kept in one copy only,
// perhaps that of an instruction set which the processor has not.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace normfuse {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
// Masks of all lanes: the unmasked intrinsics of GCC 12 start from a register that it then calls uninitialized.
constexpr __mmask16 kAll = 0xffff;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename Scalar, int size>
struct VectorOf {
    typedef Scalar type __attribute__((vector_size(size * sizeof(Scalar))));
};
template <typename Scalar, int size>
using Vector = typename VectorOf<Scalar, size>::type;

struct Float16 {
    std::uint16_t bits;
};
struct BFloat16 {
    std::uint16_t bits;
};

// The type in which an element is computed.
template <typename Element>
struct WideOf {
    using type = float;
};
template <>
struct WideOf<double> {
    using type = double;
};
template <typename Element>
using Wide = typename WideOf<Element>::type;

// How many elements one register holds in the type in which they are computed.
template <typename Element>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(Wide<Element>));

template <typename To, typename From>
inline To bits_as(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// Half types by integer arithmetic, for instruction sets without a conversion

template <int size>
inline Vector<float, size> widened(const Vector<std::uint32_t, size>& half) {
    const Vector<std::uint32_t, size> magnitude = (half & 0x7fffu) << 13;
    // The exponent's bias goes from 15 to 127 by a product, which also makes subnormal halves normal.
    const auto finite = bits_as<Vector<std::uint32_t, size>>(bits_as<Vector<float, size>>(magnitude) * 0x1p112f);
    const auto special = magnitude | 0x7f800000u;
    const auto value = (half & 0x7c00u) == 0x7c00u ? special : finite;
    return bits_as<Vector<float, size>>(value | ((half & 0x8000u) << 16));
}

template <int size>
inline Vector<std::uint32_t, size> narrowed(const Vector<float, size>& value) {
    using Bits = Vector<std::uint32_t, size>;
    const Bits bits = bits_as<Bits>(value);
    const Bits magnitude = bits & 0x7fffffffu;
    // Below 2^-14 the sum with 0.5 rounds at the place where a subnormal half ends.
    const Bits subnormal = bits_as<Bits>(bits_as<Vector<float, size>>(magnitude) + 0.5f) - 0x3f000000u;
    const Bits normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
    const Bits finite = magnitude < 0x38800000u ? subnormal : normal;
    const Bits large = magnitude > 0x7f800000u ? Bits{} + 0x7e00u : Bits{} + 0x7c00u;
    return (magnitude >= 0x47800000u ? large : finite) | ((bits >> 16) & 0x8000u);
}

// Loads and stores of as many elements as a register holds

inline Vector<float, kLanes<float>> load(const float* from) {
    Vector<float, kLanes<float>> value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline Vector<double, kLanes<double>> load(const double* from) {
    Vector<double, kLanes<double>> value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline void store(float* to, const Vector<float, kLanes<float>>& value) { std::memcpy(to, &value, sizeof value); }

inline void store(double* to, const Vector<double, kLanes<double>>& value) { std::memcpy(to, &value, sizeof value); }

// Stores past the caches, to aligned addresses: a line that is written whole need not be read before. float32 only.
#if defined(__SSE2__)
template <typename Element>
constexpr bool kStreams = sizeof(Element) == sizeof(float);

inline void stream(float* to, const Vector<float, kLanes<float>>& value) {
#if defined(__AVX512F__)
    _mm512_stream_ps(to, bits_as<__m512>(value));
#elif defined(__AVX2__)
    _mm256_stream_ps(to, bits_as<__m256>(value));
#else
    _mm_stream_ps(to, bits_as<__m128>(value));
#endif
}

// Makes what was streamed visible to other threads.
inline void finish_streams() { _mm_sfence(); }
#else
template <typename Element>
constexpr bool kStreams = false;

inline void finish_streams() {}
#endif

inline Vector<float, kLanes<float>> load(const Float16* from) {
#if defined(__AVX512F__)
    return bits_as<Vector<float, 16>>(
        _mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__F16C__)
    return bits_as<Vector<float, kLanes<float>>>(
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__aarch64__)
    return bits_as<Vector<float, 4>>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&from->bits))));
#else
    Vector<std::uint16_t, kLanes<float>> bits;
    std::memcpy(&bits, from, sizeof bits);
    return widened<kLanes<float>>(__builtin_convertvector(bits, Vector<std::uint32_t, kLanes<float>>));
#endif
}

inline void store(Float16* to, const Vector<float, kLanes<float>>& value) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_maskz_cvtps_ph(kAll, bits_as<__m512>(value), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm256_cvtps_ph(bits_as<__m256>(value), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
    vst1_u16(&to->bits, vreinterpret_u16_f16(vcvt_f16_f32(bits_as<float32x4_t>(value))));
#else
    const auto bits = __builtin_convertvector(narrowed<kLanes<float>>(value), Vector<std::uint16_t, kLanes<float>>);
    std::memcpy(to, &bits, sizeof bits);
#endif
}

inline Vector<float, kLanes<float>> load(const BFloat16* from) {
    Vector<std::uint16_t, kLanes<float>> bits;
    std::memcpy(&bits, from, sizeof bits);
    return bits_as<Vector<float, kLanes<float>>>(__builtin_convertvector(bits, Vector<std::uint32_t, kLanes<float>>)
                                                 << 16);
}

inline void store(BFloat16* to, const Vector<float, kLanes<float>>& value) {
    using Bits = Vector<std::uint32_t, kLanes<float>>;
    const Bits bits = bits_as<Bits>(value);
    const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    const Bits quiet = (bits >> 16) | 0x40u;
    const Bits chosen = (bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded;
    const auto narrow = __builtin_convertvector(chosen, Vector<std::uint16_t, kLanes<float>>);
    std::memcpy(to, &narrow, sizeof narrow);
}

// Fewer elements than a register holds; lanes beyond `count` are zero, and nothing beyond is read or written.

template <typename Element>
inline auto load_some(const Element* from, std::int64_t count) {
    Element padded[kLanes<Element>] = {};
    for (std::int64_t lane = 0; lane < count; ++lane) padded[lane] = from[lane];
    return load(padded);
}

template <typename Element>
inline void store_some(Element* to, const Vector<Wide<Element>, kLanes<Element>>& value, std::int64_t count) {
    Element padded[kLanes<Element>];
    store(padded, value);
    for (std::int64_t lane = 0; lane < count; ++lane) to[lane] = padded[lane];
}

#if defined(__AVX512F__)
template <>
inline auto load_some<float>(const float* from, std::int64_t count) {
    return bits_as<Vector<float, 16>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from));
}

template <>
inline void store_some<float>(float* to, const Vector<float, 16>& value, std::int64_t count) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), bits_as<__m512>(value));
}
#endif

// The first `count` lanes of a vector, and zero in the others.
template <typename Scalar, int size>
inline Vector<Scalar, size> first_lanes(const Vector<Scalar, size>& value, std::int64_t count) {
    using Index = Vector<Scalar, size>;
    Index index;
    for (int lane = 0; lane < size; ++lane) index[lane] = static_cast<Scalar>(lane);
    return index < static_cast<Scalar>(count) ? value : Vector<Scalar, size>{};
}

// The sum of the lanes, in double.
template <typename Scalar, int size>
inline double lanes_sum(const Vector<Scalar, size>& value) {
    if constexpr (size == 1) {
        return static_cast<double>(value[0]);
    } else {
        Vector<Scalar, size / 2> low, high;
        std::memcpy(&low, &value, sizeof low);
        std::memcpy(&high, reinterpret_cast<const char*>(&value) + sizeof low, sizeof high);
        if constexpr (sizeof(Scalar) == sizeof(double)) {
            return lanes_sum<double, size / 2>(low + high);
        } else {
            return lanes_sum<double, size / 2>(__builtin_convertvector(low, Vector<double, size / 2>) +
                                               __builtin_convertvector(high, Vector<double, size / 2>));
        }
    }
}

}  // namespace
}  // namespace normfuse
