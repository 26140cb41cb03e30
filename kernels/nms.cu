// Greedy temporal NMS of a ragged batch; one block a pair.
//
// Each round the block finds the best candidate that is left, keeps it, and empties the slots that
// overlap it too much. A candidate is better by its score, then by an earlier start, then by an
// earlier end: the same order as the NumPy twin, so that ties fall alike.
//
// Most slots are empty. The others move to shared memory first, in whatever order, where they fit;
// where they do not, the rounds run over the slots themselves.

#define WARP 32
#define WARPS 4   // a block is WARPS * WARP threads
#define ROOM 1024 // candidates in shared memory

struct Candidate {
    double score;
    int start, end;
};

__device__ __forceinline__ bool better(const Candidate& a, const Candidate& b) {
    if (a.score != b.score) return a.score > b.score;
    if (a.start != b.start) return a.start < b.start;
    return a.end < b.end;
}

__device__ __forceinline__ double minus_infinity() { return -1.0 / 0.0; }

extern "C" __global__ void __launch_bounds__(WARPS * WARP) nms(
    const int* starts,                      // (slots,) first clip
    const int* ends,                        // (slots,) one past the last clip
    double* scores,                         // (slots,) -inf for an empty slot; emptied as it goes
    const long long* __restrict__ offsets,  // (pairs + 1,) into the slots
    const double threshold, const int top,
    int* __restrict__ kept_starts,          // (pairs, top)
    int* __restrict__ kept_ends,            // (pairs, top)
    double* __restrict__ kept_scores,       // (pairs, top)
    int* __restrict__ counts)               // (pairs,)
{
    __shared__ Candidate bests[WARPS];
    __shared__ double shared_scores[ROOM];
    __shared__ int shared_starts[ROOM], shared_ends[ROOM], live;
    const long long pair = blockIdx.x;
    long long begin = offsets[pair], end = offsets[pair + 1];
    int count = 0;

    if (threadIdx.x == 0) live = 0;
    __syncthreads();
    for (long long slot = begin + threadIdx.x; slot < end; slot += WARPS * WARP) {
        const double score = scores[slot];
        if (!(score > minus_infinity())) continue;
        const int at = atomicAdd(&live, 1);
        if (at >= ROOM) continue;
        shared_scores[at] = score;
        shared_starts[at] = starts[slot];
        shared_ends[at] = ends[slot];
    }
    __syncthreads();
    if (live <= ROOM) {
        scores = shared_scores;
        starts = shared_starts;
        ends = shared_ends;
        begin = 0;
        end = live;
    }

    while (count < top) {
        Candidate best = {minus_infinity(), 0, 0};
        for (long long slot = begin + threadIdx.x; slot < end; slot += WARPS * WARP) {
            const Candidate here = {scores[slot], starts[slot], ends[slot]};
            if (here.score > minus_infinity() && better(here, best)) best = here;
        }
        for (int step = WARP / 2; step > 0; step /= 2) {
            const Candidate other = {__shfl_xor_sync(0xffffffffu, best.score, step),
                                     __shfl_xor_sync(0xffffffffu, best.start, step),
                                     __shfl_xor_sync(0xffffffffu, best.end, step)};
            if (better(other, best)) best = other;
        }
        if (threadIdx.x % WARP == 0) bests[threadIdx.x / WARP] = best;
        __syncthreads();
        for (int warp = 0; warp < WARPS; ++warp)
            if (better(bests[warp], best)) best = bests[warp];
        __syncthreads();  // the next round writes bests again
        if (best.score == minus_infinity()) break;

        if (threadIdx.x == 0) {
            kept_starts[pair * top + count] = best.start;
            kept_ends[pair * top + count] = best.end;
            kept_scores[pair * top + count] = best.score;
        }
        ++count;
        for (long long slot = begin + threadIdx.x; slot < end; slot += WARPS * WARP) {
            if (!(scores[slot] > minus_infinity())) continue;
            const int inter = min(ends[slot], best.end) - max(starts[slot], best.start);
            const int both = ends[slot] - starts[slot] + best.end - best.start;
            if (inter > 0 && (double)inter >= threshold * (double)(both - inter))
                scores[slot] = minus_infinity();
        }
        // No barrier: a thread empties the very slots that it reads in the next round.
    }

    if (threadIdx.x == 0) counts[pair] = count;
    for (int rank = count + threadIdx.x; rank < top; rank += WARPS * WARP) {
        kept_starts[pair * top + rank] = 0;
        kept_ends[pair * top + rank] = 0;
        kept_scores[pair * top + rank] = minus_infinity();
    }
}
