// Many queries on Hopper: what corpus_many.cu does, by the instructions of hopper.cuh.
//
// A block keeps its QUERIES in shared memory and walks over the clips, whose boxes come through a
// ring of stages. One thread asks for them; two warpgroups multiply, each 64 of the queries with all
// CLIPS of a tile, so that one sifts its sums while the other keeps the tensor cores at work.

#include "embedding.cuh"
#include "corpus.cuh"
#include "hopper.cuh"

#define QUERIES 128
#define CLIPS 256
#define COLUMNS (LINE / 2)  // halves of a box's row
#define STEP 32             // bytes of a row that a product takes
#define GROUP 128           // threads of a warpgroup
#define LEFT_BYTES (QUERIES * LINE)
#define RIGHT_BYTES (CLIPS * LINE)
#define SUMS (CLIPS / 2)  // of a thread: of two queries, a quarter of the tile's columns each
#define SIFTED 8          // sums that are looked at together
#define MOST_STAGES 4

// Keys of a warp that wait to be appended, as a counter in memory takes a long while to answer.
struct Waiting {
    Key keys[WARP];
    unsigned char rows[WARP];
};

__device__ __forceinline__ void append_all(const Waiting& waiting, const int count,
                                           const int first_query, const long long capacity,
                                           Key* lists, int* counts) {
    const int lane = threadIdx.x % WARP;
    __syncwarp();
    if (lane < count)
        append(waiting.keys[lane], 1, 0, first_query + waiting.rows[lane], capacity, lists, counts);
    __syncwarp();
}

#define PART(group)                                                          \
    case group:                                                              \
        for (int i = 0; i < SIFTED; ++i) part[i] = sums[group * SIFTED + i]; \
        break;

extern "C" __global__ void __launch_bounds__(3 * GROUP, 1) many_sm90(
    const __grid_constant__ TensorMap query_map,  // halves (query_count, dim), boxes of QUERIES rows
    const __grid_constant__ TensorMap clip_map,   // halves (clips, dim), boxes of CLIPS rows
    const long long begin, const long long end, const int chunks, const int stages,
    const int query_count, const long long capacity,
    const Key* __restrict__ bars,  // (query_count,)
    Key* lists, int* counts)       // (query_count, capacity), its fill
{
    unsigned char* const asked = dynamic_shared;  // chunks x QUERIES x LINE
    unsigned char* const ring = asked + chunks * LEFT_BYTES;
    Waiting* const waiting = (Waiting*)(ring + stages * RIGHT_BYTES);
    Barrier* const filled = (Barrier*)(waiting + 2 * GROUP / WARP);
    Barrier *const emptied = filled + MOST_STAGES, *const queries_in = emptied + MOST_STAGES;

    const int query_tiles = (query_count + QUERIES - 1) / QUERIES;
    const int tile_query = blockIdx.x % query_tiles * QUERIES;
    const long long stride = (long long)(gridDim.x / query_tiles) * CLIPS;
    const long long first_tile = begin + (long long)(blockIdx.x / query_tiles) * CLIPS;

    if (threadIdx.x == 0) {
#pragma unroll 1
        for (int stage = 0; stage < stages; ++stage) {
            barrier_init(&filled[stage], 1);
            barrier_init(&emptied[stage], 2 * GROUP / WARP);
        }
        barrier_init(queries_in, 1);
        barriers_made();
    }
    __syncthreads();

    int stage = 0, round = 0;  // of the ring; a round's parity is that of its barriers' phases
    if (threadIdx.x < GROUP) {
        give_registers<40>();
        if (threadIdx.x != 0) return;
        arrive_for(queries_in, chunks * LEFT_BYTES);
        for (int chunk = 0; chunk < chunks; ++chunk)
            copy_box(asked + chunk * LEFT_BYTES, &query_map, chunk * COLUMNS, tile_query,
                     queries_in);
        for (long long tile = first_tile; tile < end; tile += stride)
            for (int chunk = 0; chunk < chunks; ++chunk) {
                wait(&emptied[stage], round % 2 ^ 1);
                arrive_for(&filled[stage], RIGHT_BYTES);
                copy_box(ring + stage * RIGHT_BYTES, &clip_map, chunk * COLUMNS, (int)tile,
                         &filled[stage]);
                if (++stage == stages) stage = 0, ++round;
            }
        return;
    }

    take_registers<232>();
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP - GROUP / WARP;
    const int half = warp / (GROUP / WARP);  // of the block's queries
    const int first_query = tile_query + warp * 16;
    float bounds[2];  // the scores of the bars: a first test
    Key own_bars[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int query = first_query + lane / 4 + 8 * i;
        own_bars[i] = query < query_count ? bars[query] : 0;
        bounds[i] = query < query_count ? score_of(own_bars[i]) : 3.4e38f;
    }
    int count = 0;  // of keys that wait, for a warp alike
    const unsigned long long left = matrix(asked + half * (LEFT_BYTES / 2));
    wait(queries_in, 0);

    for (long long tile = first_tile; tile < end; tile += stride) {
        float sums[SUMS];
        int before = 0;  // the stage before this one
        for (int chunk = 0; chunk < chunks; ++chunk) {
            wait(&filled[stage], round % 2);
            const unsigned long long right = matrix(ring + stage * RIGHT_BYTES);
            products_begin();
#pragma unroll
            for (int step = 0; step < LINE / STEP; ++step)
                multiply_group(sums, left + (chunk * LEFT_BYTES + step * STEP) / 16,
                               right + step * STEP / 16, chunk + step > 0);
            products_commit();
            products_wait<1>();  // those of the stage before are done with it
            if (chunk > 0 && lane == 0) arrive(&emptied[before]);
            before = stage;
            if (++stage == stages) stage = 0, ++round;
        }
        products_wait<0>();
        settle(sums);
        if (lane == 0) arrive(&emptied[before]);

        unsigned hopeful = 0;  // which parts of the sums hold one that is not below its bar
#pragma unroll
        for (int group = 0; group < SUMS / SIFTED; ++group) {
            bool any = false;  // not below: a NaN passes on
#pragma unroll
            for (int i = 0; i < SIFTED; ++i)
                any |= !(sums[group * SIFTED + i] < bounds[i / 2 % 2]);
            hopeful |= (unsigned)any << group;
        }
        hopeful = __reduce_or_sync(ALL, hopeful);
        for (; hopeful; hopeful &= hopeful - 1) {
            const int group = __ffs(hopeful) - 1;
            float part[SIFTED];
            switch (group) {  // registers have no index
                PART(0) PART(1) PART(2) PART(3) PART(4) PART(5) PART(6) PART(7)
                PART(8) PART(9) PART(10) PART(11) PART(12) PART(13) PART(14)
                default: PART(15)
            }
#pragma unroll
            for (int i = 0; i < SIFTED; ++i) {
                if (!__any_sync(ALL, !(part[i] < bounds[i / 2 % 2]))) continue;
                const int row = lane / 4 + i / 2 % 2 * 8;
                const long long clip =
                    tile + (group * SIFTED + i) / 4 * 8 + lane % 4 * 2 + i % 2;
                const Key key = key_of(part[i], clip);
                const bool passes = first_query + row < query_count && clip < end &&
                                    key >= own_bars[i / 2 % 2];
                if (begin == 0) {
                    if (passes) append(key, begin, clip, first_query + row, capacity, lists, counts);
                    continue;
                }
                const unsigned passing = __ballot_sync(ALL, passes);
                if (passing == 0) continue;
                if (count + __popc(passing) > WARP) {
                    append_all(waiting[warp], count, first_query, capacity, lists, counts);
                    count = 0;
                }
                if (passes) {
                    const int slot = count + __popc(passing & (1u << lane) - 1);
                    waiting[warp].keys[slot] = key;
                    waiting[warp].rows[slot] = (unsigned char)row;
                }
                count += __popc(passing);
            }
        }
    }
    append_all(waiting[warp], count, first_query, capacity, lists, counts);
}
