// Embeddings: the type of their numbers, loads 16 bytes wide, sums over a warp.
//
// The numbers are float, or with GRANALIGN_HALF __half. Sums are always float.
#pragma once

#define WARP 32
#define ALL 0xffffffffu
#define PIECE (16 / (int)sizeof(embedding_t))  // numbers in 16 bytes, the width of every load

#ifdef GRANALIGN_HALF
#include <cuda_fp16.h>
typedef __half embedding_t;
__device__ __forceinline__ float to_float(embedding_t x) { return __half2float(x); }
__device__ __forceinline__ embedding_t from_float(float x) { return __float2half_rn(x); }
#else
typedef float embedding_t;
__device__ __forceinline__ float to_float(embedding_t x) { return x; }
__device__ __forceinline__ embedding_t from_float(float x) { return x; }
#endif

struct Piece {
    embedding_t values[PIECE];
};

__device__ __forceinline__ bool on_16_bytes(const embedding_t* rows, const int dim) {
    return (size_t)rows % 16 == 0 && dim % PIECE == 0;
}

// Numbers from PIECE * piece on of a row, 0 past its end: one by one, for rows that start anywhere.
__device__ __forceinline__ Piece gather(const embedding_t* row, const int piece, const int dim) {
    Piece loaded;
#pragma unroll
    for (int i = 0; i < PIECE; ++i) {
        const int at = piece * PIECE + i;
        loaded.values[i] = at < dim ? row[at] : from_float(0.0f);
    }
    return loaded;
}

// The same in one load, where all rows are on 16 bytes.
template <bool Wide>
__device__ __forceinline__ Piece load(const embedding_t* row, const int piece, const int dim) {
    if (!Wide) return gather(row, piece, dim);
    const uint4 raw = __ldg((const uint4*)row + piece);
    Piece loaded;
    memcpy(&loaded, &raw, sizeof raw);
    return loaded;
}

// Lane l gets the sum over the warp of values[l % Count]; at first Half is Count, a power of 2, at
// most WARP. Each step halves what a lane still holds: it gives one half away and adds to the other.
template <int Half, int Count>
__device__ __forceinline__ float totals(float (&values)[Count]) {
    const int lane = threadIdx.x % WARP;
    if constexpr (Half == 1) {
        float total = values[0];
#pragma unroll
        for (int step = Count; step < WARP; step *= 2) total += __shfl_xor_sync(ALL, total, step);
        return total;
    } else {
        constexpr int Next = Half / 2;
#pragma unroll
        for (int i = 0; i < Next; ++i) {
            const float kept = lane & Next ? values[i + Next] : values[i];
            const float given = lane & Next ? values[i] : values[i + Next];
            values[i] = kept + __shfl_xor_sync(ALL, given, Next);
        }
        return totals<Next>(values);
    }
}
