// Similarity curves of a ragged batch of (query, video) pairs; one block a pair.
//
// A warp takes a clip at a time. It reads the clip's agnostic and aware embedding once and holds
// every variant's dot product in registers: the first `simplified` variants against the agnostic
// row, the others against the aware row (or the agnostic one where there is none). The block then
// knows each curve's minimum and maximum and rescales what it has just written, still in cache.

#include "embedding.cuh"

#define WARP 32
#define WARPS 8   // a block is WARPS * WARP threads
#define TILE 8    // variants held in registers; more variants take another turn over the rows

extern "C" __global__ void __launch_bounds__(WARPS * WARP) similarity(
    const embedding_t* __restrict__ variants,   // (pairs, variant_count, dim)
    const embedding_t* __restrict__ agnostic,   // (clips of all videos, dim)
    const embedding_t* __restrict__ aware,      // (aware captions, dim), unread where there are none
    const int* __restrict__ aware_rows,         // (total,) row of aware, -1 for none; may be null
    const long long* __restrict__ first_clips,  // (pairs,) where the pair's video starts in agnostic
    const long long* __restrict__ offsets,      // (pairs + 1,) into total
    const int variant_count, const int simplified, const int dim, const long long total,
    const float flat,                           // a smaller range is noise: the curve becomes zero
    const float power,                          // exponent of the rescaled curve
    float* __restrict__ curves,                 // (variant_count, total)
    float* __restrict__ fused)                  // (total,)
{
    __shared__ float lows[WARPS][TILE];
    __shared__ float highs[WARPS][TILE];
    const long long pair = blockIdx.x;
    const long long begin = offsets[pair];
    const int clips = (int)(offsets[pair + 1] - begin);
    const int lane = threadIdx.x % WARP;
    const int warp = threadIdx.x / WARP;
    const embedding_t* const clip_rows = agnostic + first_clips[pair] * dim;

    for (int first = 0; first < variant_count; first += TILE) {
        const int tile = min(TILE, variant_count - first);
        const embedding_t* const queries = variants + (pair * variant_count + first) * dim;
        float low[TILE], high[TILE];
#pragma unroll
        for (int v = 0; v < TILE; ++v) {
            low[v] = 3.4e38f;
            high[v] = -3.4e38f;
        }

        for (int clip = warp; clip < clips; clip += WARPS) {
            const int aware_row = aware_rows ? aware_rows[begin + clip] : -1;
            const embedding_t* const plain = clip_rows + (long long)clip * dim;
            const embedding_t* const guided =
                aware_row < 0 ? plain : aware + (long long)aware_row * dim;
            float dots[TILE] = {};
            for (int k = lane; k < dim; k += WARP) {
                const float x = to_float(plain[k]);
                const float y = aware_row < 0 ? x : to_float(guided[k]);
#pragma unroll
                for (int v = 0; v < TILE; ++v)
                    if (v < tile)
                        dots[v] += to_float(queries[(long long)v * dim + k])
                                   * (first + v < simplified ? x : y);
            }
#pragma unroll
            for (int v = 0; v < TILE; ++v) {
                if (v >= tile) continue;
                float dot = dots[v];
                for (int step = WARP / 2; step > 0; step /= 2)
                    dot += __shfl_xor_sync(0xffffffffu, dot, step);
                if (lane == 0) curves[(first + v) * total + begin + clip] = dot;
                low[v] = min(low[v], dot);
                high[v] = max(high[v], dot);
            }
        }

        if (lane == 0) {
#pragma unroll
            for (int v = 0; v < TILE; ++v) {
                lows[warp][v] = low[v];
                highs[warp][v] = high[v];
            }
        }
        __syncthreads();
#pragma unroll
        for (int v = 0; v < TILE; ++v)
            for (int w = 0; w < WARPS; ++w) {
                low[v] = min(low[v], lows[w][v]);
                high[v] = max(high[v], highs[w][v]);
            }

        for (int clip = threadIdx.x; clip < clips; clip += WARPS * WARP) {
            float sum = first == 0 ? 0.0f : fused[begin + clip];
#pragma unroll
            for (int v = 0; v < TILE; ++v) {
                if (v >= tile) continue;
                float* const cell = curves + (first + v) * total + begin + clip;
                const float range = high[v] - low[v];
                // Not a plain zero: a NaN must stay one and be reported.
                float value = (*cell - low[v]) * (range < flat ? 0.0f : 1.0f)
                              / (range < flat ? 1.0f : range);
                if (power != 1.0f) value = powf(value, power);
                *cell = value;
                sum += value;
            }
            fused[begin + clip] = first + tile == variant_count ? sum / variant_count : sum;
        }
        __syncthreads();  // the next tile writes lows and highs again
    }
}
