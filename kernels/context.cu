// Each clip's embedding mixed with those of near and similar clips; one warp a clip.

#include "embedding.cuh"

#define WARP 32
#define WARPS 8     // a block is WARPS * WARP threads
#define MOST 129    // widest band: 2 * 64 + 1

extern "C" __global__ void __launch_bounds__(WARPS * WARP) context(
    const embedding_t* __restrict__ embeddings,  // (total, dim), rows of unit length
    const long long* __restrict__ offsets,       // (videos + 1,) into total
    const int radius, const int power, const long long videos, const long long total,
    const int dim,
    embedding_t* __restrict__ mixed)             // (total, dim)
{
    __shared__ float weights[WARPS][MOST];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const long long clip = (long long)blockIdx.x * WARPS + warp;
    if (clip >= total) return;  // a whole warp; there is no barrier of the block below

    long long video = 0, beyond = videos;  // offsets[video] <= clip < offsets[beyond]
    while (beyond - video > 1) {
        const long long middle = (video + beyond) / 2;
        if (offsets[middle] <= clip) video = middle;
        else beyond = middle;
    }
    const long long first = max(offsets[video], clip - radius);
    const int count = (int)(min(offsets[video + 1], clip + radius + 1) - first);
    const embedding_t* const own = embeddings + clip * dim;

    float sum = 0.0f;
    for (int other = 0; other < count; ++other) {
        const embedding_t* const row = embeddings + (first + other) * dim;
        float dot = 0.0f;
        for (int k = lane; k < dim; k += WARP) dot += to_float(own[k]) * to_float(row[k]);
        for (int step = WARP / 2; step > 0; step /= 2)
            dot += __shfl_xor_sync(0xffffffffu, dot, step);
        float weight = 1.0f;
        // Below zero there is nothing in common. A NaN passes on.
        for (int i = 0; i < power; ++i) weight *= dot < 0.0f ? 0.0f : dot;
        if (lane == 0) weights[warp][other] = weight;
        sum += weight;
    }
    __syncwarp();
    for (int k = lane; k < dim; k += WARP) {
        float value = 0.0f;
        for (int other = 0; other < count; ++other)
            value += weights[warp][other] * to_float(embeddings[(first + other) * dim + k]);
        mixed[clip * dim + k] = from_float(value / sum);
    }
}
