// Each clip's embedding mixed with those of near and similar clips of its video.
//
// A warp takes CLIPS neighbouring clips, whose neighbourhoods are nearly the same, so that a row that
// it reads serves all of them: once for the weights, then for the mean.

#include "embedding.cuh"

#define WARPS 4     // a block is WARPS * WARP threads
#define CLIPS 4     // of a video, a warp
#define OTHERS 4    // neighbours that are compared at a time
#define MOST 132    // widest neighbourhood of CLIPS clips: 4 + 2 * 64

// Add up each row's squares.
template <int Rows>
__device__ __forceinline__ void add_squares(const Piece (&rows)[Rows], float (&squares)[Rows]) {
#pragma unroll
    for (int r = 0; r < Rows; ++r)
#pragma unroll
        for (int i = 0; i < PIECE; ++i) {
            const float value = to_float(rows[r].values[i]);
            squares[r] = fmaf(value, value, squares[r]);
        }
}

template <bool Wide>
__device__ __forceinline__ void mix(
    const embedding_t* __restrict__ embeddings, const long long first, const int count,
    const long long left, const int window, const int radius, const int power, const bool rescale,
    const int dim, float (&weights)[CLIPS][MOST], embedding_t* __restrict__ mixed)
{
    const int lane = threadIdx.x % WARP;
    const int pieces = (dim + PIECE - 1) / PIECE;
    const int before = (int)(first - left);  // neighbours to the left of the first clip
    const embedding_t* const rows = embeddings + left * dim;

    float sum = 0.0f;
    for (int start = 0; start < window; start += OTHERS) {
        const embedding_t *own[CLIPS], *near[OTHERS];
#pragma unroll
        for (int c = 0; c < CLIPS; ++c) own[c] = embeddings + (first + min(c, count - 1)) * dim;
#pragma unroll
        for (int o = 0; o < OTHERS; ++o)
            near[o] = rows + (long long)min(start + o, window - 1) * dim;
        float dots[CLIPS * OTHERS] = {}, own_squares[CLIPS] = {}, near_squares[OTHERS] = {};
        for (int piece = lane; piece < pieces; piece += WARP) {
            Piece mine[CLIPS], theirs[OTHERS];
#pragma unroll
            for (int c = 0; c < CLIPS; ++c) mine[c] = load<Wide>(own[c], piece, dim);
#pragma unroll
            for (int o = 0; o < OTHERS; ++o) theirs[o] = load<Wide>(near[o], piece, dim);
#pragma unroll
            for (int i = 0; i < PIECE; ++i)
#pragma unroll
                for (int c = 0; c < CLIPS; ++c)
#pragma unroll
                    for (int o = 0; o < OTHERS; ++o)
                        dots[c * OTHERS + o] =
                            fmaf(to_float(mine[c].values[i]), to_float(theirs[o].values[i]),
                                 dots[c * OTHERS + o]);
            if (!rescale) continue;
            add_squares(mine, own_squares);
            add_squares(theirs, near_squares);
        }
        float dot = totals<CLIPS * OTHERS>(dots), length = 1.0f;
        const int clip = lane % (CLIPS * OTHERS) / OTHERS, other = start + lane % OTHERS;
        if (rescale) {
            length = sqrtf(totals<OTHERS>(near_squares));
            dot /= length * sqrtf(__shfl_sync(ALL, totals<CLIPS>(own_squares), clip));
        }
        const bool near_enough = other < window && abs(other - before - clip) <= radius;
        float weight = near_enough ? 1.0f : 0.0f;
        // Below zero there is nothing in common. A NaN passes on, but not from out of reach.
        for (int i = 0; near_enough && i < power; ++i) weight *= dot < 0.0f ? 0.0f : dot;
        if (lane < CLIPS * OTHERS) weights[clip][other] = weight / length;
        sum += weight;
    }
#pragma unroll
    for (int step = OTHERS / 2; step > 0; step /= 2) sum += __shfl_xor_sync(ALL, sum, step);
    float sums[CLIPS];
#pragma unroll
    for (int c = 0; c < CLIPS; ++c) sums[c] = __shfl_sync(ALL, sum, c * OTHERS);
    __syncwarp();

    for (int piece = lane; piece < pieces; piece += WARP) {
        float values[CLIPS][PIECE] = {};
#pragma unroll 4
        for (int other = 0; other < window; ++other) {
            const Piece near = load<Wide>(rows + (long long)other * dim, piece, dim);
#pragma unroll
            for (int c = 0; c < CLIPS; ++c) {
                if (abs(other - before - c) > radius) continue;  // even a NaN there does not count
#pragma unroll
                for (int i = 0; i < PIECE; ++i)
                    values[c][i] =
                        fmaf(weights[c][other], to_float(near.values[i]), values[c][i]);
            }
        }
#pragma unroll
        for (int c = 0; c < CLIPS; ++c) {
            if (c >= count) break;
            Piece mean;
#pragma unroll
            for (int i = 0; i < PIECE; ++i) mean.values[i] = from_float(values[c][i] / sums[c]);
            embedding_t* const row = mixed + (first + c) * dim;
            if (Wide) {
                uint4 raw;
                memcpy(&raw, &mean, sizeof raw);
                ((uint4*)row)[piece] = raw;
            } else {
#pragma unroll
                for (int i = 0; i < PIECE; ++i)
                    if (piece * PIECE + i < dim) row[piece * PIECE + i] = mean.values[i];
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * WARP, 4) context(
    const embedding_t* __restrict__ embeddings,  // (total, dim), rows of unit length
    const long long* __restrict__ offsets,       // (videos + 1,) into total
    const long long* __restrict__ tiles,         // (tile_count, 2) video, its first clip in the tile
    const long long tile_count, const int radius, const int power,
    const int rescale,                           // whether to mix the rows as if of unit length
    const int dim,
    embedding_t* __restrict__ mixed)             // (total, dim)
{
    __shared__ float weights[WARPS][CLIPS][MOST];
    const int warp = threadIdx.x / WARP;
    const long long tile = (long long)blockIdx.x * WARPS + warp;
    if (tile >= tile_count) return;  // a whole warp; there is no barrier of the block below

    const long long video = tiles[2 * tile], first = tiles[2 * tile + 1];
    const long long end = offsets[video + 1];
    const int count = (int)min((long long)CLIPS, end - first);
    const long long left = max(offsets[video], first - radius);
    const int window = (int)(min(end, first + count + radius) - left);
    if (on_16_bytes(embeddings, dim) && on_16_bytes(mixed, dim))
        mix<true>(embeddings, first, count, left, window, radius, power, rescale, dim, weights[warp],
                  mixed);
    else
        mix<false>(embeddings, first, count, left, window, radius, power, rescale, dim,
                   weights[warp], mixed);
}
