// Keys and lists: what the kernels of a corpus share. After embedding.cuh.
#pragma once

#define WARPS 8  // a block is WARPS * WARP threads, in every kernel here

typedef unsigned long long Key;

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

// The first segment, from clip 0, fills the lists in order; there is no bar yet.
__device__ __forceinline__ void append(const Key key, const long long begin, const long long clip,
                                       const int query, const long long capacity, Key* lists,
                                       int* counts) {
    lists[query * capacity + (begin ? atomicAdd(&counts[query], 1) : clip)] = key;
}
