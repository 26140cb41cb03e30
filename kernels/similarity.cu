// Similarity curves of a ragged batch of (query, video) pairs, in two launches.
//
// `cosines` spreads the products over the whole GPU, however few pairs there are: a warp takes CLIPS
// clips of a pair and holds their products with TILE variants in registers, so that what it reads of
// either serves all of the other. The first variants, the simplified ones, meet the agnostic rows;
// the detailed ones meet the aware rows, or the agnostic one where a clip has none. `rescale`, one
// block a pair, then knows each curve's minimum and maximum and stretches it, still in cache.

#include "embedding.cuh"

#define WARPS 4     // of `cosines`: a block is WARPS * WARP threads
#define CLIPS 4     // of a pair, a warp
#define TILE 8      // variants of a kind, a warp
#define AT_ONCE 4   // variants that are read together
#define RESCALERS 8 // warps of `rescale`, and the variants that it does at a time

// Lane l gets the product of clip l / TILE with variant l % TILE.
template <bool Wide>
__device__ __forceinline__ float compare(const embedding_t* const (&rows)[CLIPS],
                                         const embedding_t* const variants, const int count,
                                         const int dim) {
    const int pieces = (dim + PIECE - 1) / PIECE;
    float dots[CLIPS * TILE] = {};
    for (int piece = threadIdx.x % WARP; piece < pieces; piece += WARP) {
        Piece clips[CLIPS];
#pragma unroll
        for (int c = 0; c < CLIPS; ++c) clips[c] = load<Wide>(rows[c], piece, dim);
#pragma unroll
        for (int some = 0; some < TILE; some += AT_ONCE) {
            if (some >= count) continue;
            // Past the end the last one once more: so all these loads are on their way together.
            Piece asked[AT_ONCE];
#pragma unroll
            for (int v = 0; v < AT_ONCE; ++v)
                asked[v] = load<Wide>(variants + (long long)min(some + v, count - 1) * dim, piece,
                                      dim);
#pragma unroll
            for (int i = 0; i < PIECE; ++i)
#pragma unroll
                for (int c = 0; c < CLIPS; ++c)
#pragma unroll
                    for (int v = 0; v < AT_ONCE; ++v)
                        dots[c * TILE + some + v] =
                            fmaf(to_float(asked[v].values[i]), to_float(clips[c].values[i]),
                                 dots[c * TILE + some + v]);
        }
    }
    return totals<CLIPS * TILE>(dots);
}

extern "C" __global__ void __launch_bounds__(WARPS * WARP, 3) cosines(
    const embedding_t* __restrict__ simplified,  // (pairs, simplified_count, dim)
    const embedding_t* __restrict__ detailed,    // (pairs, detailed_count, dim), unread if 0
    const embedding_t* __restrict__ agnostic,    // (clips of all videos, dim)
    const embedding_t* __restrict__ aware,       // (aware captions, dim), unread without aware_rows
    const int* __restrict__ aware_rows,          // (total,) row of aware, -1 for none; may be null
    const long long* __restrict__ first_clips,   // (pairs,) where the pair's video starts
    const long long* __restrict__ offsets,       // (pairs + 1,) into total
    const long long* __restrict__ tiles,         // (tile_count, 2) pair, its first column in the tile
    const long long tile_count, const int simplified_count, const int detailed_count,
    const int dim, const long long total,
    float* __restrict__ curves)                  // (simplified_count + detailed_count, total)
{
    // A warp takes a tile of clips and a group of either the simplified or the detailed variants.
    const int simplified_groups = (simplified_count + TILE - 1) / TILE;
    const int groups = simplified_groups + (detailed_count + TILE - 1) / TILE;
    const long long at = (long long)blockIdx.x * WARPS + threadIdx.x / WARP, tile = at / groups;
    if (tile >= tile_count) return;
    const int group = (int)(at % groups);
    const bool guided = group >= simplified_groups;
    const int first = (guided ? group - simplified_groups : group) * TILE;
    const int variant_count = guided ? detailed_count : simplified_count;

    const long long pair = tiles[2 * tile], column = tiles[2 * tile + 1];
    const int count = (int)min((long long)CLIPS, offsets[pair + 1] - column);
    const long long clip = first_clips[pair] + column - offsets[pair];
    const embedding_t* rows[CLIPS];
#pragma unroll
    for (int c = 0; c < CLIPS; ++c) {
        const int within = min(c, count - 1);
        const int row = guided && aware_rows ? aware_rows[column + within] : -1;
        rows[c] = row < 0 ? agnostic + (clip + within) * dim : aware + (long long)row * dim;
    }
    const embedding_t* const variants =
        (guided ? detailed : simplified) + (pair * variant_count + first) * dim;
    const int here = min(TILE, variant_count - first);
    const bool wide = on_16_bytes(simplified, dim) && on_16_bytes(detailed, dim) &&
                      on_16_bytes(agnostic, dim) && on_16_bytes(aware, dim);
    const float dot = wide ? compare<true>(rows, variants, here, dim)
                           : compare<false>(rows, variants, here, dim);
    const int lane = threadIdx.x % WARP;
    if (lane / TILE < count && lane % TILE < here) {
        const int curve = (guided ? simplified_count : 0) + first + lane % TILE;
        curves[curve * total + column + lane / TILE] = dot;
    }
}

extern "C" __global__ void __launch_bounds__(RESCALERS * WARP) rescale(
    const long long* __restrict__ offsets,  // (pairs + 1,) into total
    const int variant_count, const long long total,
    const float flat,                       // a smaller range is noise: the curve becomes zero
    const float power,                      // exponent of the rescaled curve
    float* __restrict__ curves,             // (variant_count, total): cosines, then curves
    float* __restrict__ fused)              // (total,)
{
    __shared__ float lows[RESCALERS], highs[RESCALERS];
    const long long begin = offsets[blockIdx.x];
    const int clips = (int)(offsets[blockIdx.x + 1] - begin);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;

    for (int first = 0; first < variant_count; first += RESCALERS) {
        const int here = min(RESCALERS, variant_count - first);
        if (warp < here) {
            const float* const curve = curves + (first + warp) * total + begin;
            float low = 3.4e38f, high = -3.4e38f;
            for (int clip = lane; clip < clips; clip += WARP) {
                low = min(low, curve[clip]);
                high = max(high, curve[clip]);
            }
            for (int step = WARP / 2; step > 0; step /= 2) {
                low = min(low, __shfl_xor_sync(ALL, low, step));
                high = max(high, __shfl_xor_sync(ALL, high, step));
            }
            if (lane == 0) {
                lows[warp] = low;
                highs[warp] = high;
            }
        }
        __syncthreads();
        for (int clip = threadIdx.x; clip < clips; clip += RESCALERS * WARP) {
            float sum = first == 0 ? 0.0f : fused[begin + clip];
#pragma unroll
            for (int v = 0; v < RESCALERS; ++v) {
                if (v >= here) break;
                float* const cell = curves + (first + v) * total + begin + clip;
                const float range = highs[v] - lows[v];
                // Not a plain zero: a NaN must stay one and be reported.
                float value = (*cell - lows[v]) * (range < flat ? 0.0f : 1.0f)
                              / (range < flat ? 1.0f : range);
                if (power != 1.0f) value = powf(value, power);
                *cell = value;
                sum += value;
            }
            fused[begin + clip] = first + here == variant_count ? sum / variant_count : sum;
        }
        __syncthreads();  // the next variants write lows and highs again
    }
}
