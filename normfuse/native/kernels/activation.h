// Activations of whole vectors: ReLU, SiLU and GELU (with the error function). NaN stays NaN.
#pragma once

#include "kernels/element.h"
#include "kernels/norm.h"

namespace normfuse {
namespace {

// e^x within 1.5 units in the last place, for x in [−87, 87]: 2^n · p(r) with x = n·ln 2 + r. The polynomial is a
// minimax fit of (e^r − 1 − r) / r² on |r| ≤ ln 2 / 2, relative error 4e-9.
template <int size>
inline Vector<float, size> exponential(const Vector<float, size>& x) {
    using Bits = Vector<std::uint32_t, size>;
    constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
    const Vector<float, size> shifted = x * 0x1.715476p0f + kRound;
    const Vector<float, size> n = shifted - kRound;
    const Vector<float, size> r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;  // ln 2 in two parts, the first exact
    Vector<float, size> p = Vector<float, size>{} + 0x1.6a244ap-10f;
    p = p * r + 0x1.1239d4p-7f;
    p = p * r + 0x1.5558f2p-5f;
    p = p * r + 0x1.555492p-3f;
    p = p * r + 0x1.fffffcp-2f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const Bits power = (bits_as<Bits>(shifted) << 23) + 0x3f800000u;
    return p * bits_as<Vector<float, size>>(power);
}

// 1 / x for x in [1, 1e38], by an estimate and one step from it where the instruction set has an estimate.
template <int size>
inline Vector<float, size> reciprocal(const Vector<float, size>& x) {
#if defined(__AVX512F__)
    const auto estimate = bits_as<Vector<float, size>>(_mm512_maskz_rcp14_ps(kAll, bits_as<__m512>(x)));
    return estimate * (2.0f - x * estimate);
#elif defined(__AVX2__)
    // 12 bits: the square of their error would still be seen, the cube is not.
    const auto estimate = bits_as<Vector<float, size>>(_mm256_rcp_ps(bits_as<__m256>(x)));
    const Vector<float, size> left = 1.0f - x * estimate;
    return estimate + estimate * (left + left * left);
#else
    return 1.0f / x;
#endif
}

template <typename Scalar, int size>
inline Vector<Scalar, size> clamped(const Vector<Scalar, size>& x, Scalar low, Scalar high) {
    const Vector<Scalar, size> below = x < low ? Vector<Scalar, size>{} + low : x;
    return below > high ? Vector<Scalar, size>{} + high : below;
}

template <typename Scalar, int size>
inline Vector<Scalar, size> relu(const Vector<Scalar, size>& x) {
    return x < Scalar{0} ? Vector<Scalar, size>{} : x;
}

template <int size>
inline Vector<float, size> silu(const Vector<float, size>& x) {
    return x * reciprocal<size>(1.0f + exponential<size>(clamped<float, size>(-x, -87.0f, 87.0f)));
}

// x·Φ(x) = max(x, 0) − ½·|x|·erfc(z) with z = |x| / √2, and erfc(z) = e^(−z²)·g(t), t = 1 / (1 + z/2): small results
// keep their relative accuracy, where 1 + erf(x/√2) cancels. g is a minimax fit, relative error 3e-8.
template <int size>
inline Vector<float, size> gelu(const Vector<float, size>& x) {
    const Vector<float, size> magnitude = clamped<float, size>(x < 0.0f ? -x : x, 0.0f, 13.0f);
    const Vector<float, size> z = magnitude * 0x1.6a09e6p-1f;
    const Vector<float, size> t = reciprocal<size>(1.0f + 0.5f * z);
    Vector<float, size> g = Vector<float, size>{} - 0.0541273746f;
    g = g * t + 0.259068536f;
    g = g * t - 0.430575581f;
    g = g * t + 0.207323361f;
    g = g * t + 0.0280118826f;
    g = g * t + 0.175724046f;
    g = g * t + 0.251578397f;
    g = g * t + 0.280743983f;
    g = g * t + 0.282260566f;
    g = g * t - 7.84725554e-06f;
    return relu<float, size>(x) - 0.5f * magnitude * (g * exponential<size>(-(z * z)));
}

// float64 takes the functions of the C library, lane by lane.
template <int size>
inline Vector<double, size> silu(const Vector<double, size>& x) {
    Vector<double, size> y;
    for (int lane = 0; lane < size; ++lane) y[lane] = x[lane] / (1.0 + __builtin_exp(-x[lane]));
    return y;
}

template <int size>
inline Vector<double, size> gelu(const Vector<double, size>& x) {
    Vector<double, size> y;
    for (int lane = 0; lane < size; ++lane) {
        y[lane] = 0.5 * x[lane] * __builtin_erfc(-x[lane] * 0.70710678118654752440);
    }
    return y;
}

template <Activation activation, typename Scalar, int size>
inline Vector<Scalar, size> activated(const Vector<Scalar, size>& x) {
    if constexpr (activation == Activation::kRelu) return relu<Scalar, size>(x);
    if constexpr (activation == Activation::kSilu) return silu<size>(x);
    if constexpr (activation == Activation::kGelu) return gelu<size>(x);
    return x;
}

}  // namespace
}  // namespace normfuse
