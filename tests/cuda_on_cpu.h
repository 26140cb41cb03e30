// Just enough of CUDA to compile the kernels as C++ and run them on a CPU, one block at a time.
//
// Every thread of a block is a fiber that runs until it meets a barrier, a shuffle or its end. Each
// warp in turn runs as far ahead of the others as it can, the first one first or the last one first:
// a kernel that lacks a barrier gives a wrong result in one order or the other. Threads that wait at
// different places are reported, where a GPU would hang. Shared memory is filled with rubbish
// before each block, because on a GPU it starts as whatever the last block left.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("block_shared")))

using std::max;
using std::min;

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};
static Dim3 threadIdx, blockIdx, blockDim, gridDim;

#ifdef GRANALIGN_HALF  // in place of cuda_fp16.h
typedef _Float16 __half;
static inline float __half2float(__half x) { return (float)x; }
static inline __half __float2half_rn(float x) { return (__half)x; }
#endif

// The linker names the ends of a section; the anchor makes sure that there is one.
extern "C" char __start_block_shared[], __stop_block_shared[];
__shared__ int block_shared_anchor = 0;

namespace emulator {

constexpr unsigned kWarp = 32;
enum class Wait { nothing, block, warp, ended };

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(64 * 1024);
    Wait wait = Wait::nothing;
};

static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static unsigned current = 0;
static unsigned long long exchanged[1024];
static void (*body)(void*) = nullptr;
static void* body_argument = nullptr;

static void stop_at(Wait wait) {
    const unsigned self = current;
    fibers[self].wait = wait;
    swapcontext(&fibers[self].context, &scheduler);
}

static void entry() {
    body(body_argument);
    stop_at(Wait::ended);
}

template <class T>
T exchange(T value, unsigned source_lane) {
    static_assert(sizeof(T) <= sizeof exchanged[0], "a shuffle moves at most 8 bytes");
    const unsigned self = current, first = self / kWarp * kWarp;
    std::memcpy(&exchanged[self], &value, sizeof value);
    stop_at(Wait::warp);
    T result;
    std::memcpy(&result, &exchanged[first + source_lane % kWarp], sizeof result);
    stop_at(Wait::warp);
    return result;
}

// Whether all threads from `begin` up to `end` wait at the same place; if so, they may go on.
static bool release(unsigned begin, unsigned end, Wait wait) {
    for (unsigned t = begin; t < end; ++t)
        if (fibers[t].wait != wait) return false;
    for (unsigned t = begin; t < end; ++t) fibers[t].wait = Wait::nothing;
    return true;
}

static void resume(unsigned thread) {
    current = threadIdx.x = thread;
    swapcontext(&scheduler, &fibers[thread].context);
}

static bool run_block(unsigned threads, bool backwards) {
    std::memset(__start_block_shared, 0xCD, __stop_block_shared - __start_block_shared);
    fibers.resize(threads);
    for (auto& fiber : fibers) {
        fiber.wait = Wait::nothing;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, entry, 0);
    }
    const unsigned warps = (threads + kWarp - 1) / kWarp;
    do {
        for (unsigned w = 0; w < warps; ++w) {
            const unsigned begin = (backwards ? warps - 1 - w : w) * kWarp;
            const unsigned end = min(begin + kWarp, threads);
            // A warp runs ahead as far as it can, so that what it must not overtake shows.
            do {
                for (unsigned i = 0; i < end - begin; ++i) {
                    const unsigned thread = backwards ? end - 1 - i : begin + i;
                    if (fibers[thread].wait == Wait::nothing) resume(thread);
                }
            } while (release(begin, end, Wait::warp));
        }
    } while (release(0, threads, Wait::block));
    for (const auto& fiber : fibers)
        if (fiber.wait != Wait::ended) return false;
    return true;
}

template <class... Args, size_t... I>
bool run_grid(void (*kernel)(Args...), unsigned blocks, unsigned threads, void** arguments,
              bool backwards, std::index_sequence<I...>) {
    std::tuple<Args...> values{*static_cast<Args*>(arguments[I])...};
    auto call = [&] { std::apply(kernel, values); };
    body_argument = &call;
    body = [](void* f) { (*static_cast<decltype(call)*>(f))(); };
    gridDim.x = blocks;
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        if (!run_block(threads, backwards)) return false;
    return true;
}

// Arguments as cuLaunchKernel takes them: a pointer to each. False: threads of a block diverged.
template <class... Args>
bool run(void (*kernel)(Args...), unsigned blocks, unsigned threads, void** arguments,
         bool backwards) {
    return run_grid(kernel, blocks, threads, arguments, backwards,
                    std::index_sequence_for<Args...>{});
}

}  // namespace emulator

static inline void __syncthreads() { emulator::stop_at(emulator::Wait::block); }
static inline void __syncwarp() { emulator::stop_at(emulator::Wait::warp); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulator::exchange(value, emulator::current % emulator::kWarp ^ mask);
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
    return emulator::exchange(value, lane);
}

// Fibers take turns, so a plain read-modify-write is atomic.
template <class T>
T atomicAdd(T* cell, T value) {
    const T old = *cell;
    *cell = old + value;
    return old;
}
