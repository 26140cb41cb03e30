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

// Smooth a curve and stretch it over [0, ONE]; count its values in the lane's bin. By one warp.
__device__ __forceinline__ int prepare(const float* __restrict__ curve, const int* __restrict__ taps,
                       const int radius, const int clips, const int stretch,
                       int* const histogram, int* __restrict__ values)
{
    const int lane = threadIdx.x % WARP;
    int low = 0x7fffffff, high = 0;
    for (int clip = lane; clip < clips; clip += WARP) {
        int sum = 0;
        for (int tap = -radius; tap <= radius; ++tap) {
            const int at = min(max(clip + tap, 0), clips - 1);
            sum += taps[tap + radius] * (int)(curve[at] * (float)ONE + 0.5f);
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
__device__ __forceinline__ int otsu(const int counts, const long long sums, const int first, const int last)
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

// Four blocks a multiprocessor: without the second number the compiler saves registers for more and
// spills.
extern "C" __global__ void __launch_bounds__(WARPS * WARP, 4) proposals(
    const float* __restrict__ curves,            // (variants, total) in [0, 1]
    const float* __restrict__ fused,             // (total,)
    const long long* __restrict__ offsets,       // (pairs + 1,) into total
    const long long* __restrict__ slot_offsets,  // (pairs + 1,) into the slots
    const int* __restrict__ taps,                // (2 * radius + 1,) the Gaussian
    const double* __restrict__ factors,          // (LEVELS,) of the score; 0 for an unused level
    const int radius, const int sources, const long long total, const int gap, const int stretch,
    const double drop, const double own_share, const double fused_share, const double mean_weight,
    const double length_weight,
    int* __restrict__ values,      // (sources, total) workspace: the prepared curves
    long long* __restrict__ sums,  // (slots, 2) workspace: own and fused sum over the run
    int* __restrict__ per_row,     // (pairs, sources * LEVELS) workspace: edge, then clips in runs
    int* __restrict__ starts, int* __restrict__ ends, double* __restrict__ scores)  // (slots,)
{
    __shared__ int histograms[WARPS][BINS];
    __shared__ int found;
    const long long pair = blockIdx.x;
    const long long begin = offsets[pair];
    const int clips = (int)(offsets[pair + 1] - begin);
    if (clips == 0) return;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int rows = sources * LEVELS;  // row: a curve at a level
    const long long first_slot = slot_offsets[pair];
    const int capacity = (int)((slot_offsets[pair + 1] - first_slot) / rows);
    const int* const base = values + begin;  // the fused curve, prepared
    int* const mine_per_row = per_row + pair * rows;

    if (threadIdx.x == 0) found = 0;
    for (int source = warp; source < sources; source += WARPS) {
        const float* const curve = source == 0 ? fused : curves + (source - 1) * total;
        int counts = prepare(curve + begin, taps, radius, clips, stretch, histograms[warp],
                             values + source * total + begin);
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
        if (lane < LEVELS)
            mine_per_row[source * LEVELS + lane] = lane == 0 ? edge : lane == 1 ? high : low;
    }
    __syncthreads();  // the fused curve is there for all

    for (int source = warp; source < sources; source += WARPS) {
        if (lane >= LEVELS) continue;
        // A lane walks the curve at its level: a run ends where more than `gap` clips are low.
        const int* const mine = values + source * total + begin;
        const int row = source * LEVELS + lane;
        const int edge = mine_per_row[row];
        const long long row_slot = first_slot + (long long)row * capacity;
        int count = 0, start = -1, last = -1, length = 0;
        long long own = 0, shared = 0, own_at_last = 0, shared_at_last = 0;
        for (int clip = 0; edge != 0 && clip <= clips; ++clip) {
            const bool high = clip < clips && mine[clip] >= edge << BIN_SHIFT;
            if (start >= 0 && (clip == clips || (high && clip - last > gap + 1))) {
                starts[row_slot + count] = start;
                ends[row_slot + count] = last + 1;
                sums[2 * (row_slot + count)] = own_at_last;
                sums[2 * (row_slot + count) + 1] = shared_at_last;
                length += last + 1 - start;
                ++count;
                start = -1;
            }
            if (clip == clips) break;
            if (high && start < 0) {
                start = clip;
                own = shared = 0;
            }
            own += mine[clip];
            shared += base[clip];
            if (high) {
                last = clip;
                own_at_last = own;
                shared_at_last = shared;
            }
        }
        for (int slot = count; slot < capacity; ++slot) starts[row_slot + slot] = -1;
        mine_per_row[row] = length;
        atomicAdd(&found, count);
    }
    __syncthreads();

    const int to_drop = (int)(drop * (double)found);
    const int slots = rows * capacity;
    for (int slot = threadIdx.x; slot < slots; slot += WARPS * WARP) {
        const long long at = first_slot + slot;
        double score = minus_infinity();
        if (starts[at] >= 0) {
            const int row = slot / capacity, length = ends[at] - starts[at];
            const double scale = (double)length * (double)ONE;
            const double own = (double)sums[2 * at] / scale;
            const double mean = (double)sums[2 * at + 1] / scale;
            const double share = (double)length / (double)mine_per_row[row];
            score = mean_weight * (own_share * own + fused_share * mean);
            score = factors[row % LEVELS] * (score + length_weight * share);
            if (to_drop) {
                // Its rank by fused mean, then by place: slots stand in a fixed order. Means are
                // compared as fractions, without a division.
                int rank = 0;
                for (int other = 0; other < slots; ++other) {
                    const long long there = first_slot + other;
                    if (starts[there] < 0) continue;
                    const long long less = sums[2 * there + 1] * length;
                    const long long more = sums[2 * at + 1] * (ends[there] - starts[there]);
                    rank += less < more || (less == more && other < slot);
                }
                if (rank < to_drop) score = minus_infinity();
            }
        }
        scores[at] = score;
    }

    // Flat curves, one-clip videos: nothing stands out, so the moment is the whole video. No barrier:
    // thread 0 has itself written what stands here, and with nothing found nobody ranks.
    if (found == 0 && threadIdx.x == 0) {
        starts[first_slot] = 0;
        ends[first_slot] = clips;
        scores[first_slot] = 0.0;
    }
}
