// Relevance feedback within a video: each variant moves towards the clips that its curve ranks first.
//
// A block takes a pair, TILE variants of a kind, and WARP pieces of 16 bytes of the rows. First a
// warp smooths a variant's curve and finds the lowest value among its best clips, bit by bit. Then
// each warp adds up a share of the clips' rows for all TILE variants.

#include "embedding.cuh"

#define WARPS 8      // a block is WARPS * WARP threads
#define TILE 4       // variants of a kind, a block
#define ONE 32768    // 1.0 of a curve in fixed point
#define TOP_BIT 27   // of 1.0 of a smoothed curve: ONE times the sum of the Gaussian's weights

struct Best {
    int lowest;                // of the best clips' values
    float weight;              // of each: 1 / their number
    float agnostic, aware;     // share of a row of either kind in the mean that is taken away
};

// The best clips of a curve: those of the `most` greatest values that lie as high as `level` in the
// curve's range, and all that equal the lowest of these. By one warp. A NaN counts as 0 here; the row
// or the variant that it came from holds one too.
__device__ __forceinline__ Best find_best(const float* __restrict__ curve,
                                          const int* __restrict__ taps, const int radius,
                                          const int* __restrict__ guide, const int clips,
                                          const int most, const double level, int* const values) {
    const int lane = threadIdx.x % WARP;
    int low = 0x7fffffff, high = 0;
    for (int clip = lane; clip < clips; clip += WARP) {
        int sum = 0;
        for (int tap = -radius; tap <= radius; ++tap) {
            const float value = curve[min(max(clip + tap, 0), clips - 1)];
            sum += taps[tap + radius] * (value == value ? (int)(value * (float)ONE + 0.5f) : 0);
        }
        values[clip] = sum;  // this lane alone reads it before the block's barrier
        low = min(low, sum);
        high = max(high, sum);
    }
    for (int step = WARP / 2; step > 0; step /= 2) {
        low = min(low, __shfl_xor_sync(ALL, low, step));
        high = max(high, __shfl_xor_sync(ALL, high, step));
    }
    int lowest = 0;
    for (int bit = TOP_BIT; bit >= 0; --bit) {
        const int trial = lowest | 1 << bit;
        int count = 0;
        for (int clip = lane; clip < clips; clip += WARP) count += values[clip] >= trial;
        for (int step = WARP / 2; step > 0; step /= 2) count += __shfl_xor_sync(ALL, count, step);
        if (count >= most) lowest = trial;
    }
    lowest = max(lowest, low + (int)(level * (double)(high - low)));
    int best = 0, best_aware = 0, aware = 0;
    for (int clip = lane; clip < clips; clip += WARP) {
        const bool chosen = values[clip] >= lowest, guided = guide && guide[clip] >= 0;
        best += chosen;
        aware += guided;
        best_aware += chosen && guided;
    }
    for (int step = WARP / 2; step > 0; step /= 2) {
        best += __shfl_xor_sync(ALL, best, step);
        aware += __shfl_xor_sync(ALL, aware, step);
        best_aware += __shfl_xor_sync(ALL, best_aware, step);
    }
    const float weight = 1.0f / best;
    return {lowest, weight, (best - best_aware) * weight / max(clips - aware, 1),
            best_aware * weight / max(aware, 1)};
}

// Add to sums[v] this warp's part of: the mean of the best clips' rows, each less the mean of all rows
// of its kind.
template <bool Wide>
__device__ __forceinline__ void add_rows(
    const embedding_t* __restrict__ agnostic, const embedding_t* __restrict__ aware,
    const int* __restrict__ rows, const int* const values, const long long total, const int clips,
    const int here, const int piece, const int dim, const Best* const best,
    float (&sums)[TILE][PIECE])
{
    const bool within = piece * PIECE < dim;
    for (int clip = threadIdx.x / WARP; clip < clips; clip += WARPS) {
        const int row = rows ? rows[clip] : -1;
        const embedding_t* const from =
            row < 0 ? agnostic + (long long)clip * dim : aware + (long long)row * dim;
        Piece loaded = {};
        if (within) loaded = load<Wide>(from, piece, dim);
#pragma unroll
        for (int v = 0; v < TILE; ++v) {
            if (v >= here) break;
            const bool chosen = values[v * total + clip] >= best[v].lowest;
            const float weight = (chosen ? best[v].weight : 0.0f)
                                 - (row < 0 ? best[v].agnostic : best[v].aware);
#pragma unroll
            for (int i = 0; i < PIECE; ++i)
                sums[v][i] = fmaf(weight, to_float(loaded.values[i]), sums[v][i]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * WARP, 2) feedback(
    const embedding_t* __restrict__ simplified,  // (pairs, simplified_count, dim)
    const embedding_t* __restrict__ detailed,    // (pairs, detailed_count, dim), unread if 0
    const embedding_t* __restrict__ agnostic,    // (clips of all videos, dim)
    const embedding_t* __restrict__ aware,       // (aware captions, dim), unread without aware_rows
    const int* __restrict__ aware_rows,          // (total,) row of aware, -1 for none; may be null
    const long long* __restrict__ first_clips,   // (pairs,) where the pair's video starts
    const long long* __restrict__ offsets,       // (pairs + 1,) into total
    const float* __restrict__ curves,            // (simplified_count + detailed_count, total)
    const int* __restrict__ taps,                // (2 * radius + 1,) the Gaussian
    const int radius,
    const long long total, const int simplified_count, const int detailed_count, const int dim,
    const int most,                              // best clips of a curve
    const double level,                          // of the best clips in the range of their curve
    int* smoothed,                               // as curves: workspace
    embedding_t* __restrict__ moved_simplified,  // as simplified
    embedding_t* __restrict__ moved_detailed)    // as detailed
{
    __shared__ Best best[TILE];
    __shared__ float partial[WARPS][WARP * PIECE];
    const int slices = (dim + WARP * PIECE - 1) / (WARP * PIECE);
    const int simplified_groups = (simplified_count + TILE - 1) / TILE;
    const int groups = simplified_groups + (detailed_count + TILE - 1) / TILE;
    const int slice = (int)(blockIdx.x % slices), group = (int)(blockIdx.x / slices % groups);
    const long long pair = blockIdx.x / slices / groups;
    const bool guided = group >= simplified_groups;
    const int first = (guided ? group - simplified_groups : group) * TILE;
    const int variant_count = guided ? detailed_count : simplified_count;
    const int here = min(TILE, variant_count - first);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;

    const long long begin = offsets[pair];
    const int clips = (int)(offsets[pair + 1] - begin);
    const long long cell = ((guided ? simplified_count : 0) + first) * total + begin;
    int* const values = smoothed + cell;
    const int* const guide = guided && aware_rows ? aware_rows + begin : nullptr;
    if (warp < here) {
        // Blocks of other slices write the same numbers to the same place.
        const Best found = find_best(curves + cell + warp * total, taps, radius, guide, clips,
                                     min(most, clips), level, values + warp * total);
        if (lane == 0) best[warp] = found;
    }
    __syncthreads();

    float sums[TILE][PIECE] = {};
    const embedding_t* const rows = agnostic + first_clips[pair] * dim;
    const int piece = slice * WARP + lane;
    if (on_16_bytes(agnostic, dim) && on_16_bytes(aware, dim))
        add_rows<true>(rows, aware, guide, values, total, clips, here, piece, dim, best, sums);
    else
        add_rows<false>(rows, aware, guide, values, total, clips, here, piece, dim, best, sums);

    // The warps' parts together, and the variant itself.
    const long long at = (pair * variant_count + first) * dim;
    const embedding_t* const variants = (guided ? detailed : simplified) + at;
    embedding_t* const moved = (guided ? moved_detailed : moved_simplified) + at;
#pragma unroll
    for (int v = 0; v < TILE; ++v) {
        if (v >= here) break;
#pragma unroll
        for (int i = 0; i < PIECE; ++i) partial[warp][lane * PIECE + i] = sums[v][i];
        __syncthreads();
        for (int number = threadIdx.x; number < WARP * PIECE; number += WARPS * WARP) {
            const int column = slice * WARP * PIECE + number;
            if (column >= dim) break;
            float sum = to_float(variants[v * dim + column]);
#pragma unroll
            for (int other = 0; other < WARPS; ++other) sum += partial[other][number];
            moved[v * dim + column] = from_float(sum);
        }
        __syncthreads();  // the next variant writes partial again
    }
}
