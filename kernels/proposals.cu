// Candidate moments of a ragged batch of pairs; one block a pair, a warp a curve.
//
// All arithmetic up to the score is in integers (curves to 15 bits, Gaussian weights to 12), so the
// candidates equal the NumPy twin's to the bit whatever the order of the sums; the score is a few
// double operations in a stated order, compiled without fused multiply-add.

#define WARP 32
#define WARPS 8      // a block is WARPS * WARP threads
#define BINS WARP    // of the histogram: one a lane
#define LEVELS 3     // main, high, low
#define ONE 32768    // 1.0 in fixed point
#define BIN_SHIFT 10 // ONE / BINS = 1 << BIN_SHIFT
#define TAPS_BITS 12
#define ALL 0xffffffffu

__device__ __forceinline__ double minus_infinity() { return -1.0 / 0.0; }

// Smooth a curve and stretch it over [0, ONE]; count its values in the lane's bin. By one warp. A NaN
// in the curve counts as `broken`.
__device__ __forceinline__ int prepare(const float* __restrict__ curve,
                                       const int* __restrict__ taps, const int radius,
                                       const int clips, const int stretch, int* const histogram,
                                       int* const broken, int* __restrict__ values)
{
    const int lane = threadIdx.x % WARP;
    int low = 0x7fffffff, high = 0;
    for (int clip = lane; clip < clips; clip += WARP) {
        const float own = curve[clip];
        if (own != own) atomicAdd(broken, 1);
        int sum = 0;
        for (int tap = -radius; tap <= radius; ++tap) {
            const float value = curve[min(max(clip + tap, 0), clips - 1)];
            sum += taps[tap + radius] * (value == value ? (int)(value * (float)ONE + 0.5f) : 0);
        }
        values[clip] = sum;
        low = min(low, sum);
        high = max(high, sum);
    }
    for (int step = WARP / 2; step > 0; step /= 2) {
        low = min(low, __shfl_xor_sync(ALL, low, step));
        high = max(high, __shfl_xor_sync(ALL, high, step));
    }
    if (!stretch) {
        low = 0;
        high = ONE << TAPS_BITS;
    }
    histogram[lane] = 0;
    __syncwarp();
    for (int clip = lane; clip < clips; clip += WARP) {
        const int value =
            high > low ? (int)((long long)(values[clip] - low) * ONE / (high - low)) : 0;
        values[clip] = value;
        atomicAdd(&histogram[min(value >> BIN_SHIFT, BINS - 1)], 1);
    }
    __syncwarp();
    return histogram[lane];
}

// Otsu among the bins from `first` up to `last`: the edge that maximises the variance between the
// classes, the first of equals; 0 where only one of the bins is occupied. `counts` and `sums` are
// the clips, and the sum of their bins, in this lane's bin and all below. By one warp.
__device__ __forceinline__ int otsu(const int counts, const long long sums, const int first,
                                    const int last)
{
    const int lane = threadIdx.x % WARP;
    const int count_before = first ? __shfl_sync(ALL, counts, first - 1) : 0;
    const long long sum_before = first ? __shfl_sync(ALL, sums, first - 1) : 0;
    const int count = __shfl_sync(ALL, counts, last - 1) - count_before;
    const long long sum = __shfl_sync(ALL, sums, last - 1) - sum_before;
    const int below = min(max(counts - count_before, 0), count);
    const long long sum_below = min(max(sums - sum_before, 0LL), sum);
    double variance = 0.0;
    if (below > 0 && below < count) {
        const double gap = (double)(sum * below - sum_below * count);
        variance = gap * gap / (double)((long long)below * (count - below));
    }
    int edge = variance > 0.0 ? lane + 1 : 0;
    for (int step = WARP / 2; step > 0; step /= 2) {
        const double other = __shfl_xor_sync(ALL, variance, step);
        const int other_edge = __shfl_xor_sync(ALL, edge, step);
        if (other > variance || (other == variance && other_edge < edge)) {
            variance = other;
            edge = other_edge;
        }
    }
    return edge;
}

struct Row {     // a curve at a level
    int runs;    // that it was cut into
    int length;  // clips in them
};

// Cut a curve into runs at each level; a run ends where more than `gap` clips are low. Adds up the
// values on the way. By one warp, a clip a lane; what a lane needs to know of the clips before its
// own, it sees in the masks of who is high and who begins a run.
__device__ __forceinline__ int cut(const int* __restrict__ values, const int clips, const int gap,
                                   const int (&edges)[LEVELS], const int capacity,
                                   long long* __restrict__ sums, int* __restrict__ starts,
                                   int* __restrict__ ends, Row* __restrict__ rows)
{
    const int lane = threadIdx.x % WARP;
    int runs[LEVELS] = {}, last[LEVELS], length[LEVELS] = {};
#pragma unroll
    for (int level = 0; level < LEVELS; ++level) last[level] = -1;
    long long before = 0;
    for (int begin = 0; begin < clips; begin += WARP) {
        const int clip = begin + lane, value = clip < clips ? values[clip] : -1;
        int sum = max(value, 0);
        for (int step = 1; step < WARP; step *= 2) {
            const int more = __shfl_sync(ALL, sum, max(lane - step, 0));
            if (lane >= step) sum += more;
        }
        if (clip < clips) sums[clip] = before + sum;
        before += __shfl_sync(ALL, sum, WARP - 1);
#pragma unroll
        for (int level = 0; level < LEVELS; ++level) {
            if (edges[level] == 0) continue;
            const bool high = value >= edges[level] << BIN_SHIFT;
            const unsigned all_high = __ballot_sync(ALL, high), to_the_left = (1u << lane) - 1;
            const unsigned left = all_high & to_the_left;
            const int previous = left ? begin + 31 - __clz(left) : last[level];
            const bool fresh = high && (previous < 0 || clip - previous - 1 > gap);
            const unsigned all_fresh = __ballot_sync(ALL, fresh);
            if (fresh) {
                const int run = runs[level] + __popc(all_fresh & to_the_left);
                starts[level * capacity + run] = clip;
                if (run) ends[level * capacity + run - 1] = previous + 1;
                length[level] += previous + 1 - clip;  // previous is -1 before the first run
            }
            runs[level] += __popc(all_fresh);
            if (all_high) last[level] = begin + 31 - __clz(all_high);
        }
    }
    int found = 0;
#pragma unroll
    for (int level = 0; level < LEVELS; ++level) {
        for (int step = WARP / 2; step > 0; step /= 2)
            length[level] += __shfl_xor_sync(ALL, length[level], step);
        if (lane == 0) {
            if (runs[level]) ends[level * capacity + runs[level] - 1] = last[level] + 1;
            rows[level] = {runs[level], length[level] + last[level] + 1};
        }
        found += runs[level];
    }
    return found;
}

// The sum of the values from `start` up to `end`.
__device__ __forceinline__ long long between(const long long* __restrict__ sums, const int start,
                                             const int end) {
    return sums[end - 1] - (start ? sums[start - 1] : 0);
}

// Four blocks a multiprocessor: without the second number the compiler saves registers for more and
// spills.
extern "C" __global__ void __launch_bounds__(WARPS * WARP, 4) proposals(
    const float* __restrict__ curves,            // (variants, total) in [0, 1]
    const float* __restrict__ fused,             // (total,)
    const long long* __restrict__ offsets,       // (pairs + 1,) into total
    const long long* __restrict__ slot_offsets,  // (pairs + 1,) into the slots
    const int* __restrict__ taps,                // the Gaussian, (2 * radius + 1,), then the fine one
    const double* __restrict__ factors,          // (2, LEVELS) of the score, then of the fine cut's
    const double* __restrict__ length_factors,   // (clips of the longest pair + 1,); may be null
    const int radius, const int fine_radius,     // fine_radius below 0: no fine cut
    const int sources, const long long total, const int gap, const int stretch,
    const double drop, const double own_share, const double fused_share, const double mean_weight,
    const double length_weight,
    int* values,                   // (sources, total) workspace: the prepared curves
    long long* sums,               // (sources, total) workspace: each up to and with a clip
    Row* per_row,                  // (pairs, sources * LEVELS) workspace
    int* starts, int* ends, double* scores)  // (slots,)
{
    __shared__ int histograms[WARPS][BINS];
    __shared__ int found, broken;
    const long long pair = blockIdx.x;
    const long long begin = offsets[pair];
    const int clips = (int)(offsets[pair + 1] - begin);
    if (clips == 0) return;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int rows = sources * LEVELS;
    const long long first_slot = slot_offsets[pair];
    const int slots = (int)(slot_offsets[pair + 1] - first_slot), capacity = slots / rows;
    Row* const mine = per_row + pair * rows;
    starts += first_slot;
    ends += first_slot;
    scores += first_slot;
    sums += begin;

    if (threadIdx.x == 0) found = broken = 0;
    __syncthreads();
    for (int source = warp; source < sources; source += WARPS) {
        const bool fine = fine_radius >= 0 && source == sources - 1;
        const float* const curve =
            source == 0 || fine ? fused : curves + (source - 1) * total;
        int* const own_values = values + source * total + begin;
        int counts = prepare(curve + begin, fine ? taps + 2 * radius + 1 : taps,
                             fine ? fine_radius : radius, clips, stretch, histograms[warp],
                             &broken, own_values);
        long long bin_sums = (long long)counts * lane;
        for (int step = 1; step < WARP; step *= 2) {
            const int left = max(lane - step, 0);
            const int more = __shfl_sync(ALL, counts, left);
            const long long more_sums = __shfl_sync(ALL, bin_sums, left);
            if (lane >= step) {
                counts += more;
                bin_sums += more_sums;
            }
        }
        const int edge = otsu(counts, bin_sums, 0, BINS);
        const int high = edge && factors[1] != 0.0 ? otsu(counts, bin_sums, edge, BINS) : 0;
        const int low = edge && factors[2] != 0.0 ? otsu(counts, bin_sums, 0, edge) : 0;
        const int edges[LEVELS] = {edge, high, low};
        const int row = source * LEVELS;
        const int runs = cut(own_values, clips, gap, edges, capacity, sums + source * total,
                             starts + row * capacity, ends + row * capacity, mine + row);
        if (lane == 0) atomicAdd(&found, runs);
    }
    __syncthreads();

    const int to_drop = (int)(drop * (double)found);
    for (int slot = threadIdx.x; slot < slots; slot += WARPS * WARP) {
        const int row = slot / capacity;
        double score = minus_infinity();
        if (!broken && slot - row * capacity < mine[row].runs) {
            const int start = starts[slot], end = ends[slot], length = end - start;
            const long long fused_sum = between(sums, start, end);
            const double scale = (double)length * (double)ONE;
            const double own =
                (double)between(sums + row / LEVELS * total, start, end) / scale;
            const double mean = (double)fused_sum / scale;
            const double share = (double)length / (double)mine[row].length;
            score = mean_weight * (own_share * own + fused_share * mean);
            const bool fine = fine_radius >= 0 && row / LEVELS == sources - 1;
            score = factors[row % LEVELS + (fine ? LEVELS : 0)] * (score + length_weight * share);
            if (length_factors) score *= length_factors[length];
            if (to_drop) {
                // Its rank by fused mean, then by place: slots stand in a fixed order. Means are
                // compared as fractions, without a division.
                int rank = 0;
                for (int other_row = 0; other_row < rows; ++other_row)
                    for (int run = 0; run < mine[other_row].runs; ++run) {
                        const int other = other_row * capacity + run;
                        const long long less =
                            between(sums, starts[other], ends[other]) * length;
                        const long long more = fused_sum * (ends[other] - starts[other]);
                        rank += less < more || (less == more && other < slot);
                    }
                if (rank < to_drop) score = minus_infinity();
            }
        }
        scores[slot] = score;
    }

    // Flat curves, one-clip videos: nothing stands out, so the moment is the whole video. No barrier:
    // thread 0 has itself written what stands here.
    if (found == 0 && !broken && threadIdx.x == 0) {
        starts[0] = 0;
        ends[0] = clips;
        scores[0] = 0.0;
    }
}
