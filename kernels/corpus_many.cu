// Many queries: tiles of QUERIES x CLIPS on the tensor cores; see corpus.cu for what is around it.
//
// A block keeps its queries, which stay in the L1 cache as packed fragments, and walks over the
// clips, whose pieces come through a ring of stages in shared memory. Blocks of the same clips run
// side by side, so that memory gives each clip once and the L2 cache the rest.

#include "embedding.cuh"
#include "corpus.cuh"
#include "tensor.cuh"

#define QUERIES 128
#define CLIPS 192
#define STAGES 3
#define CHUNK 4      // pieces of a row in a stage: 64 bytes, two steps
#define ACROSS 2     // warps along the queries, each 64; the others stand along the clips
#define LEFT 4       // fragments of 16 queries a warp
#define RIGHT 6      // fragments of 8 clips a warp
#define STAGED 768   // keys that wait in shared memory for the end of a tile

// sums += left * right over a step.
__device__ __forceinline__ void multiply(float (&sums)[4], const unsigned (&left)[4],
                                         const unsigned (&right)[2]) {
#ifdef GRANALIGN_HALF
    multiply_half(sums, left, right);
#else
    // A float as the sum of two that the tensor cores take: 22 bits of its 24. What is left out is
    // the product of the lower parts, 2^-22 of the whole.
    unsigned left_high[4], left_low[4], right_high[2], right_low[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        left_high[i] = round_tf32(__uint_as_float(left[i]));
        left_low[i] = round_tf32(__uint_as_float(left[i]) - __uint_as_float(left_high[i]));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        right_high[i] = round_tf32(__uint_as_float(right[i]));
        right_low[i] = round_tf32(__uint_as_float(right[i]) - __uint_as_float(right_high[i]));
    }
    multiply_tf32(sums, left_low, right_high);
    multiply_tf32(sums, left_high, right_low);
    multiply_tf32(sums, left_high, right_high);
#endif
}

// Where in a stage a piece of a clip is: shifted, so that 8 clips' pieces lie in different banks.
__device__ __forceinline__ int place(const int clip, const int piece) {
    return clip * CHUNK + (piece ^ clip / 2 % CHUNK);
}

extern "C" __global__ void __launch_bounds__(WARPS * WARP, 1) many(
    const uint4* __restrict__ packed,       // as prepare left it
    const embedding_t* __restrict__ clips,  // (clips, dim)
    const long long begin, const long long end, const int dim, const int query_count,
    const long long capacity, const Key* __restrict__ bars,  // (query_count,)
    Key* lists, int* counts)                                 // (query_count, capacity), its fill
{
    __shared__ uint4 stages[STAGES][CLIPS * CHUNK];
    __shared__ Key staged[STAGED];
    __shared__ int staged_queries[STAGED];
    __shared__ int staged_count;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int query_tiles = (query_count + QUERIES - 1) / QUERIES;
    const int walkers = gridDim.x / query_tiles;  // blocks of the same queries
    const int chunks = (dim + CHUNK * PIECE - 1) / (CHUNK * PIECE), steps = 2 * chunks;
    const bool wide = on_16_bytes(clips, dim);
    const int clip_in_tile = warp / ACROSS * RIGHT * 8;
    const int first_query =
        blockIdx.x % query_tiles * QUERIES + warp % ACROSS * LEFT * 16 + lane / 4;
    const uint4* const left_fragments =
        packed + (long long)(first_query / 16) * steps * WARP + lane;

    float bounds[LEFT][2];  // the scores of the bars: a first test
#pragma unroll
    for (int m = 0; m < 2 * LEFT; ++m) {
        const int query = first_query + 8 * m;
        bounds[m / 2][m % 2] = query < query_count ? score_of(bars[query]) : 3.4e38f;
    }

    // What is to be fetched next runs ahead of what is multiplied, across the ends of tiles.
    const long long first_tile = begin + (long long)(blockIdx.x / query_tiles) * CLIPS;
    long long ahead = first_tile;
    int ahead_chunk = 0, ahead_stage = 0;
    const auto fetch = [&] {
#pragma unroll
        for (int i = 0; i < CLIPS * CHUNK / (WARPS * WARP); ++i) {
            const int at = threadIdx.x + i * WARPS * WARP, clip = at / CHUNK, piece = at % CHUNK;
            const int in_row = ahead_chunk * CHUNK + piece;
            const bool filled = ahead + clip < end && in_row * PIECE < dim;
            uint4* const to = &stages[ahead_stage][place(clip, piece)];
            const embedding_t* const row = clips + (filled ? ahead + clip : 0) * dim;
            if (wide) {
                copy16(to, row + (filled ? in_row * PIECE : 0), filled);
            } else {
                const Piece loaded = gather(row, in_row, filled ? dim : 0);
                memcpy(to, &loaded, sizeof *to);
            }
        }
        copy_commit();
        ahead_stage = (ahead_stage + 1) % STAGES;
        if (++ahead_chunk == chunks) {
            ahead_chunk = 0;
            ahead += (long long)walkers * CLIPS;
        }
    };
    if (threadIdx.x == 0) staged_count = 0;
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) fetch();

    int stage = 0;
    for (long long tile = first_tile; tile < end; tile += (long long)walkers * CLIPS) {
        float sums[LEFT][RIGHT][4] = {};
        for (int chunk = 0; chunk < chunks; ++chunk) {
            copy_wait<STAGES - 2>();
            __syncthreads();  // the stage has come, and the one before it is read by none
            fetch();
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                unsigned right[RIGHT][2];
#pragma unroll
                for (int n = 0; n < RIGHT; n += 2) {
                    unsigned words[4];
                    const int clip = clip_in_tile + n * 8 + lane / 16 * 8 + lane % 8;
                    load_matrices(words, &stages[stage][place(clip, half * 2 + lane / 8 % 2)]);
                    right[n][0] = words[0];
                    right[n][1] = words[1];
                    right[n + 1][0] = words[2];
                    right[n + 1][1] = words[3];
                }
#pragma unroll
                for (int m = 0; m < LEFT; ++m) {
                    const uint4 raw =
                        __ldg(left_fragments + ((long long)m * steps + 2 * chunk + half) * WARP);
                    const unsigned left[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
                    for (int n = 0; n < RIGHT; ++n) multiply(sums[m][n], left, right[n]);
                }
            }
            stage = (stage + 1) % STAGES;
        }

#pragma unroll
        for (int m = 0; m < LEFT; ++m) {
            bool any = false;  // not below: a NaN passes on
#pragma unroll
            for (int i = 0; i < 4 * RIGHT; ++i)
                any |= !(sums[m][i / 4][i % 4] < bounds[m][i / 2 % 2]);
            if (!any) continue;
#pragma unroll
            for (int i = 0; i < 4 * RIGHT; ++i) {
                const float score = sums[m][i / 4][i % 4];
                const int query = first_query + m * 16 + i / 2 % 2 * 8;
                const long long clip = tile + clip_in_tile + i / 4 * 8 + lane % 4 * 2 + i % 2;
                if (score < bounds[m][i / 2 % 2] || query >= query_count || clip >= end) continue;
                const Key key = key_of(score, clip);
                if (key < bars[query]) continue;
                // A counter in memory takes a long while to answer: all ask at once, below.
                const int slot = begin ? atomicAdd(&staged_count, 1) : STAGED;
                if (slot < STAGED) {
                    staged[slot] = key;
                    staged_queries[slot] = query;
                } else
                    append(key, begin, clip, query, capacity, lists, counts);
            }
        }
        __syncthreads();
        const int waiting = min(staged_count, STAGED);
        if (waiting == 0) continue;  // all threads alike
        for (int slot = threadIdx.x; slot < waiting; slot += WARPS * WARP)
            append(staged[slot], begin, 0, staged_queries[slot], capacity, lists, counts);
        __syncthreads();
        if (threadIdx.x == 0) staged_count = 0;  // a barrier follows before it counts again
    }
    copy_wait<0>();
}
