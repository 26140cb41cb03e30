// The type of an embedding's numbers: float, or with GRANALIGN_HALF __half. Sums are always float.
#pragma once

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
