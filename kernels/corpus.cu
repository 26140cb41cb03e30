// The best k clips of a whole library for each query, without a matrix of queries x clips.
//
// The library is scored in segments. A segment's launch (`one`, `few`, or `many` of corpus_many.cu)
// appends to each query's list the clips that reach the query's bar; between segments `keep` cuts
// each list to its best k and raises the bar to them. A list has room for k and a whole segment, so
// nothing is lost, in whatever order the clips come. Score and row make one key, of which no two are
// equal: the result does not depend on the order in which blocks append.

#include "embedding.cuh"
#include "corpus.cuh"

// Says how full the first segment makes the lists and, for `many`, packs the queries into fragments
// (tensor.cuh): of 16 queries after 16, of step after step, each lane's four words. What lies past
// the end is 0.
extern "C" __global__ void __launch_bounds__(WARPS * WARP) prepare(
    const embedding_t* __restrict__ queries,  // (query_count, dim)
    const int query_count, const int dim, const int steps, const long long fragments,
    const long long first_segment,
    uint4* __restrict__ packed,  // (fragments,); null for the other kernels
    int* __restrict__ counts, Key* __restrict__ bars)  // (query_count,)
{
    const long long at = (long long)blockIdx.x * WARPS * WARP + threadIdx.x;
    if (at < query_count) {
        counts[at] = (int)first_segment;
        bars[at] = 0;
    }
    if (!packed || at >= fragments) return;
    const int lane = (int)(at % WARP), step = (int)(at / WARP % steps);
    const int first = (int)(at / WARP / steps) * 16 + lane / 4;
    unsigned words[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
        const int query = first + w % 2 * 8, word = step * 8 + w / 2 * 4 + lane % 4;
        embedding_t numbers[4 / sizeof(embedding_t)];
#pragma unroll
        for (int i = 0; i < 4 / (int)sizeof(embedding_t); ++i) {
            const int column = word * (4 / (int)sizeof(embedding_t)) + i;
            numbers[i] = query < query_count && column < dim
                             ? queries[(long long)query * dim + column]
                             : from_float(0.0f);
        }
        memcpy(&words[w], numbers, 4);
    }
    packed[at] = make_uint4(words[0], words[1], words[2], words[3]);
}

// Few queries: the clips pass through once, and their bytes are what takes time. A group of lanes
// reads ROWS clips at a time, 128 bytes of each, and holds all their products in registers.
#define GROUP 8
#define ROWS 4
#define FEW 8
#define TOGETHER (WARP / GROUP * ROWS)  // clips a warp at a time

template <int Most, bool Wide>
__device__ __forceinline__ void stream(
    const embedding_t* __restrict__ queries, const embedding_t* __restrict__ clips,
    const long long begin, const long long end, const int dim, const int query_count,
    const long long capacity, const Key* __restrict__ bars, Key* lists, int* counts)
{
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, member = lane % GROUP;
    const int pieces = (dim + PIECE - 1) / PIECE;
    const long long stride = (long long)gridDim.x * WARPS * TOGETHER;
    for (long long start = begin + ((long long)blockIdx.x * WARPS + warp) * TOGETHER; start < end;
         start += stride) {  // for a whole warp alike
        const long long first = start + lane / GROUP * ROWS;
        const embedding_t* row[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) row[r] = clips + min(first + r, end - 1) * dim;
        float dots[ROWS][Most] = {};
#pragma unroll(Most == 1 && Wide ? 2 : 1)
        for (int piece = member; piece < pieces; piece += GROUP) {
            Piece clip[ROWS];
            if (Wide) {
                uint4 raw[ROWS];
#pragma unroll
                for (int r = 0; r < ROWS; ++r) raw[r] = __ldcs((const uint4*)row[r] + piece);
                memcpy(clip, raw, sizeof raw);
            } else {
#pragma unroll
                for (int r = 0; r < ROWS; ++r) clip[r] = gather(row[r], piece, dim);
            }
#pragma unroll
            for (int q = 0; q < Most; ++q) {
                if (q >= query_count) break;
                const embedding_t* const asked = queries + (long long)q * dim;
                Piece query;
                if (Wide) {
                    const uint4 raw = __ldg((const uint4*)asked + piece);
                    memcpy(&query, &raw, sizeof raw);
                } else
                    query = gather(asked, piece, dim);
#pragma unroll
                for (int i = 0; i < PIECE; ++i)
#pragma unroll
                    for (int r = 0; r < ROWS; ++r)
                        dots[r][q] = fmaf(to_float(query.values[i]), to_float(clip[r].values[i]),
                                          dots[r][q]);
            }
        }
#pragma unroll
        for (int q = 0; q < Most; ++q) {
            if (q >= query_count) break;
            float score = 0.0f;  // of clip `member`, where that is below ROWS
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                float dot = dots[r][q];
#pragma unroll
                for (int step = GROUP / 2; step > 0; step /= 2)
                    dot += __shfl_xor_sync(ALL, dot, step);
                if (member == r) score = dot;
            }
            if (member < ROWS && first + member < end) {
                const Key key = key_of(score, first + member);
                if (key >= bars[q])
                    append(key, begin, first + member, q, capacity, lists, counts);
            }
        }
    }
}

template <int Most>
__device__ __forceinline__ void stream(
    const embedding_t* queries, const embedding_t* clips, const long long begin,
    const long long end, const int dim, const int query_count, const long long capacity,
    const Key* bars, Key* lists, int* counts)
{
    if (on_16_bytes(clips, dim) && on_16_bytes(queries, dim))
        stream<Most, true>(queries, clips, begin, end, dim, query_count, capacity, bars, lists,
                           counts);
    else
        stream<Most, false>(queries, clips, begin, end, dim, query_count, capacity, bars, lists,
                            counts);
}

// With registers for one query only, more loads can be on their way at once.
extern "C" __global__ void __launch_bounds__(WARPS * WARP, 3) one(
    const embedding_t* __restrict__ queries,  // (query_count, dim)
    const embedding_t* __restrict__ clips,    // (clips, dim)
    const long long begin, const long long end, const int dim, const int query_count,
    const long long capacity, const Key* __restrict__ bars,  // (query_count,)
    Key* lists, int* counts)                                 // (query_count, capacity), its fill
{
    stream<1>(queries, clips, begin, end, dim, query_count, capacity, bars, lists, counts);
}

extern "C" __global__ void __launch_bounds__(WARPS * WARP, 2) few(
    const embedding_t* __restrict__ queries, const embedding_t* __restrict__ clips,
    const long long begin, const long long end, const int dim, const int query_count,
    const long long capacity, const Key* __restrict__ bars, Key* lists, int* counts)
{
    stream<FEW>(queries, clips, begin, end, dim, query_count, capacity, bars, lists, counts);
}

// Cuts a query's list to its best k and raises the bar to them; a block a query. The k-th key is
// found byte by byte, from the top. At the last, the list is sorted and written out.
#define KEPT 1024  // the most that k may be
#define BINS 256   // of a byte

extern "C" __global__ void __launch_bounds__(WARPS * WARP) keep(
    Key* __restrict__ lists, int* __restrict__ counts, Key* __restrict__ bars,
    const long long capacity, const int k, const int last,
    float* __restrict__ scores, long long* __restrict__ rows)  // (query_count, k), at the last
{
    __shared__ int histogram[BINS];
    __shared__ Key kept[KEPT];
    __shared__ Key bar;
    __shared__ int wanted, found, filled;  // still to keep, of how many; kept so far
    const int lane = threadIdx.x % WARP, query = blockIdx.x;
    Key* const list = lists + query * capacity;
    const int count = counts[query];
    if (count <= k && !last) return;  // a whole block
    if (threadIdx.x == 0) {
        bar = 0;
        filled = 0;
        wanted = k;
        found = count;
    }
    __syncthreads();
    for (int shift = 64 - 8; wanted < found; shift -= 8) {  // ends: no two keys are equal
        histogram[threadIdx.x] = 0;
        __syncthreads();
        const Key above = shift == 64 - 8 ? 0 : ~(Key)0 << (shift + 8);  // bytes that are known
        for (int at = threadIdx.x; at < count; at += WARPS * WARP) {
            const Key key = list[at];
            if (((key ^ bar) & above) == 0) atomicAdd(&histogram[key >> shift & (BINS - 1)], 1);
        }
        __syncthreads();
        if (threadIdx.x < WARP) {
            // Which bin holds the last that is wanted, counted from the top: 8 bins a lane.
            int own = 0;
            for (int bin = 0; bin < BINS / WARP; ++bin)
                own += histogram[lane * (BINS / WARP) + bin];
            int below = own;  // from this lane's bins to the topmost
            for (int step = 1; step < WARP; step *= 2) {
                const int more = __shfl_sync(ALL, below, min(lane + step, WARP - 1));
                if (lane + step < WARP) below += more;
            }
            int left = wanted - (below - own);
            __syncwarp();  // all have read what one will write
            if (left > 0 && left <= own) {
                int bin = (lane + 1) * (BINS / WARP) - 1;
                for (; left > histogram[bin]; --bin) left -= histogram[bin];
                bar |= (Key)bin << shift;
                wanted = left;
                found = histogram[bin];
            }
        }
        __syncthreads();
    }

    for (int at = threadIdx.x; at < count; at += WARPS * WARP) {
        const Key key = list[at];
        if (key >= bar) kept[atomicAdd(&filled, 1)] = key;
    }
    __syncthreads();
    if (!last) {
        for (int at = threadIdx.x; at < k; at += WARPS * WARP) list[at] = kept[at];
        if (threadIdx.x == 0) {
            counts[query] = k;
            bars[query] = bar;
        }
        return;
    }

    int size = 2;
    while (size < k) size *= 2;
    for (int at = filled + threadIdx.x; at < size; at += WARPS * WARP) kept[at] = 0;
    __syncthreads();
    for (int run = 2; run <= size; run *= 2)  // bitonic, the greatest first
        for (int step = run / 2; step > 0; step /= 2) {
            for (int at = threadIdx.x; at < size; at += WARPS * WARP) {
                const int other = at ^ step;
                if (other < at) continue;
                const Key here = kept[at], there = kept[other];
                if ((here < there) == ((at & run) == 0)) {
                    kept[at] = there;
                    kept[other] = here;
                }
            }
            __syncthreads();
        }
    for (int rank = threadIdx.x; rank < k; rank += WARPS * WARP) {
        const Key key = kept[rank];
        scores[(long long)query * k + rank] = key ? score_of(key) : -1.0f / 0.0f;
        rows[(long long)query * k + rank] = key ? (long long)(ALL - (unsigned)key) : -1;
    }
}
