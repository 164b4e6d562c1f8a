// Vectors of one instruction set, and how the element types are computed in them.
//
// Compiled once per instruction set. Everything here and in the kernels has internal linkage, and nothing of the
// standard library is called: an inline function that is shared between the objects would be kept in one copy only,
// perhaps that of an instruction set which the processor has not.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

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

// The bits of a register of half-type elements, and their values

using Halves = Vector<std::uint16_t, kLanes<float>>;
using Floats = Vector<float, kLanes<float>>;

// Integers of 32 bits from 16 and back, those that 16 bits hold. GCC 12 makes many steps of a __builtin_convertvector.
inline Vector<std::uint32_t, kLanes<float>> extended(const Halves& halves) {
    using Bits = Vector<std::uint32_t, kLanes<float>>;
#if defined(__AVX512F__)
    return bits_as<Bits>(_mm512_maskz_cvtepu16_epi32(kAll, bits_as<__m256i>(halves)));
#elif defined(__AVX2__)
    return bits_as<Bits>(_mm256_cvtepu16_epi32(bits_as<__m128i>(halves)));
#else
    return __builtin_convertvector(halves, Bits);
#endif
}

inline Halves low_halves(const Vector<std::uint32_t, kLanes<float>>& bits) {
#if defined(__AVX512F__)
    return bits_as<Halves>(_mm512_maskz_cvtepi32_epi16(kAll, bits_as<__m512i>(bits)));
#elif defined(__AVX2__)
    const __m256i packed = _mm256_packus_epi32(bits_as<__m256i>(bits), _mm256_setzero_si256());
    return bits_as<Halves>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#else
    return __builtin_convertvector(bits, Halves);
#endif
}

template <typename Element>
inline Floats value_of(const Halves& halves);
template <typename Element>
inline Halves rounded_to(const Floats& value);

template <>
inline Floats value_of<Float16>(const Halves& halves) {
#if defined(__AVX512F__)
    return bits_as<Floats>(_mm512_maskz_cvtph_ps(kAll, bits_as<__m256i>(halves)));
#elif defined(__F16C__)
    return bits_as<Floats>(_mm256_cvtph_ps(bits_as<__m128i>(halves)));
#elif defined(__aarch64__)
    return bits_as<Floats>(vcvt_f32_f16(bits_as<float16x4_t>(halves)));
#else
    return widened<kLanes<float>>(__builtin_convertvector(halves, Vector<std::uint32_t, kLanes<float>>));
#endif
}

template <>
inline Halves rounded_to<Float16>(const Floats& value) {
#if defined(__AVX512F__)
    return bits_as<Halves>(_mm512_maskz_cvtps_ph(kAll, bits_as<__m512>(value), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    return bits_as<Halves>(_mm256_cvtps_ph(bits_as<__m256>(value), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
    return bits_as<Halves>(vcvt_f16_f32(bits_as<float32x4_t>(value)));
#else
    return __builtin_convertvector(narrowed<kLanes<float>>(value), Halves);
#endif
}

template <>
inline Floats value_of<BFloat16>(const Halves& halves) {
    return bits_as<Floats>(extended(halves) << 16);
}

template <>
inline Halves rounded_to<BFloat16>(const Floats& value) {
    using Bits = Vector<std::uint32_t, kLanes<float>>;
    const Bits bits = bits_as<Bits>(value);
    const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    const Bits quiet = (bits >> 16) | 0x40u;
    return low_halves((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

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
