// Registers from memory and back: whole ones, the first elements of one, and past the caches.
#pragma once

#include "kernels/element.h"

namespace normfuse {
namespace {

template <typename Element>
constexpr bool kIsHalf = sizeof(Element) < sizeof(Wide<Element>);

// What a register of elements is in memory.
template <typename Element>
using Stored = Vector<std::conditional_t<kIsHalf<Element>, std::uint16_t, Wide<Element>>, kLanes<Element>>;

template <typename Element>
inline Vector<Wide<Element>, kLanes<Element>> value_of_stored(const Stored<Element>& stored) {
    if constexpr (kIsHalf<Element>) return value_of<Element>(stored);
    if constexpr (!kIsHalf<Element>) return stored;
}

template <typename Element>
inline Stored<Element> stored_of_value(const Vector<Wide<Element>, kLanes<Element>>& value) {
    if constexpr (kIsHalf<Element>) return rounded_to<Element>(value);
    if constexpr (!kIsHalf<Element>) return value;
}

template <typename Element>
inline auto load(const Element* from) {
    Stored<Element> stored;
    std::memcpy(&stored, from, sizeof stored);
    return value_of_stored<Element>(stored);
}

template <typename Element>
inline void store(Element* to, const Vector<Wide<Element>, kLanes<Element>>& value) {
    const Stored<Element> stored = stored_of_value<Element>(value);
    std::memcpy(to, &stored, sizeof stored);
}

// Stores past the caches, to aligned addresses: a line that is written whole need not be read before. float32 only.
#if defined(__SSE2__)
template <typename Element>
constexpr bool kStreams = sizeof(Element) == sizeof(float);

inline void stream(float* to, const Floats& value) {
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

// Fewer elements than a register holds; lanes beyond `count` are zero, and nothing beyond is read or written. The parts
// never meet in memory: a register that is read from where its parts were just written waits for all of them.

#if defined(__AVX512F__)
template <typename Element>
inline Stored<Element> load_first(const Element* from, std::int64_t count) {
    const std::uint32_t mask = (1u << count) - 1;
    if constexpr (sizeof(Element) == 2) {
        return bits_as<Stored<Element>>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), from));
    } else if constexpr (sizeof(Element) == 4) {
        return bits_as<Stored<Element>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from));
    } else {
        return bits_as<Stored<Element>>(_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), from));
    }
}

template <typename Element>
inline void store_first(Element* to, const Stored<Element>& stored, std::int64_t count) {
    const std::uint32_t mask = (1u << count) - 1;
    if constexpr (sizeof(Element) == 2) {
        _mm256_mask_storeu_epi16(to, static_cast<__mmask16>(mask), bits_as<__m256i>(stored));
    } else if constexpr (sizeof(Element) == 4) {
        _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), bits_as<__m512>(stored));
    } else {
        _mm512_mask_storeu_pd(to, static_cast<__mmask8>(mask), bits_as<__m512d>(stored));
    }
}
#else
// Two words: a register of 16 bytes, or of 8.
struct Words {
    std::uint64_t low, high;
};

template <typename Word>
inline std::uint64_t word_at(const char* from) {
    Word word;
    std::memcpy(&word, from, sizeof word);
    return word;
}

// The first `count` < 16 bytes, an even number: one word, or two that overlap.
inline Words load_bytes(const char* from, std::int64_t count) {
    if (count > 8) {
        return {word_at<std::uint64_t>(from), word_at<std::uint64_t>(from + count - 8) >> (8 * (16 - count))};
    }
    if (count == 8) return {word_at<std::uint64_t>(from), 0};
    if (count >= 4) {
        return {word_at<std::uint32_t>(from) | word_at<std::uint32_t>(from + count - 4) << (8 * (count - 4)), 0};
    }
    return {count == 0 ? 0 : word_at<std::uint16_t>(from), 0};
}

inline void store_bytes(char* to, const Words& words, std::int64_t count) {
    const auto put = [to](std::int64_t at, auto word) { std::memcpy(to + at, &word, sizeof word); };
    if (count >= 8) {
        put(0, words.low);
        if (count > 8) put(count - 8, words.low >> (8 * (count - 8)) | words.high << (8 * (16 - count)));
    } else if (count >= 4) {
        put(0, static_cast<std::uint32_t>(words.low));
        put(count - 4, static_cast<std::uint32_t>(words.low >> (8 * (count - 4))));
    } else if (count > 0) {
        put(0, static_cast<std::uint16_t>(words.low));
    }
}

#if defined(__AVX2__)
// All bits of the first `count` lanes of a register of such integers.
template <typename Integer>
inline __m256i first_mask(std::int64_t count) {
    Vector<Integer, 32 / sizeof(Integer)> lane;
    for (int i = 0; i < static_cast<int>(32 / sizeof(Integer)); ++i) lane[i] = i;
    return bits_as<__m256i>(lane < static_cast<Integer>(count));
}
#endif

template <typename Element>
inline Stored<Element> load_first(const Element* from, std::int64_t count) {
#if defined(__AVX2__)
    if constexpr (sizeof(Element) == 4) {
        return bits_as<Stored<Element>>(_mm256_maskload_ps(from, first_mask<std::int32_t>(count)));
    } else if constexpr (sizeof(Element) == 8) {
        return bits_as<Stored<Element>>(_mm256_maskload_pd(from, first_mask<std::int64_t>(count)));
    } else
#endif
    {
        const auto size = static_cast<std::int64_t>(sizeof(Element));
        const Words words = load_bytes(reinterpret_cast<const char*>(from), count * size);
        Stored<Element> stored;
        static_assert(sizeof stored <= sizeof words);
        std::memcpy(&stored, &words, sizeof stored);
        return stored;
    }
}

template <typename Element>
inline void store_first(Element* to, const Stored<Element>& stored, std::int64_t count) {
#if defined(__AVX2__)
    if constexpr (sizeof(Element) == 4) {
        _mm256_maskstore_ps(to, first_mask<std::int32_t>(count), bits_as<__m256>(stored));
    } else if constexpr (sizeof(Element) == 8) {
        _mm256_maskstore_pd(to, first_mask<std::int64_t>(count), bits_as<__m256d>(stored));
    } else
#endif
    {
        Words words = {};
        static_assert(sizeof stored <= sizeof words);
        std::memcpy(&words, &stored, sizeof stored);
        store_bytes(reinterpret_cast<char*>(to), words, count * static_cast<std::int64_t>(sizeof(Element)));
    }
}
#endif

template <typename Element>
inline auto load_some(const Element* from, std::int64_t count) {
    return value_of_stored<Element>(load_first(from, count));
}

template <typename Element>
inline void store_some(Element* to, const Vector<Wide<Element>, kLanes<Element>>& value, std::int64_t count) {
    store_first(to, stored_of_value<Element>(value), count);
}

}  // namespace
}  // namespace normfuse
