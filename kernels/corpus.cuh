// Keys, and numbers 16 bytes wide: what the kernels of a corpus share. After embedding.cuh.
#pragma once

#define WARP 32
#define WARPS 8  // a block is WARPS * WARP threads, in every kernel here
#define ALL 0xffffffffu
#define PIECE (16 / (int)sizeof(embedding_t))  // numbers in 16 bytes, the width of every load

typedef unsigned long long Key;

struct Piece {
    embedding_t values[PIECE];
};

// Greater for a better score, then for a lower row; NaN above all numbers. Never 0.
__device__ __forceinline__ Key key_of(const float score, const long long row) {
    const float plain = score + 0.0f;  // -0 becomes 0: they are equal
    unsigned bits;
    memcpy(&bits, &plain, sizeof bits);
    bits = plain != plain ? ALL : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (Key)bits << 32 | (ALL - (unsigned)row);
}

__device__ __forceinline__ float score_of(const Key key) {
    unsigned bits = (unsigned)(key >> 32);
    bits = bits & 0x80000000u ? bits & 0x7fffffffu : ~bits;  // ALL: a NaN again
    float score;
    memcpy(&score, &bits, sizeof score);
    return score;
}

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

// The first segment, from clip 0, fills the lists in order; there is no bar yet.
__device__ __forceinline__ void append(const Key key, const long long begin, const long long clip,
                                       const int query, const long long capacity, Key* lists,
                                       int* counts) {
    lists[query * capacity + (begin ? atomicAdd(&counts[query], 1) : clip)] = key;
}
