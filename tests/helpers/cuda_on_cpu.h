// The part of CUDA that the kernels use: compiles them as C++ and runs them on a CPU, one block at
// a time.
//
// Every thread of a block is a fiber that runs until it reaches a barrier, a shuffle or its end.
// Each warp in turn runs as far ahead of the others as it can. The order of the warps is forwards
// (first warp first) or backwards: a kernel that lacks a barrier gives a wrong result in one of the
// orders. Threads that wait at different barriers are an error; a GPU would hang.
//
// Shared memory is filled with a fixed pattern before each block, because a GPU does not clear it.
// Asynchronous copies happen as late as allowed in the forward order, and at once in the backward
// order. The same holds for copies of boxes and products of warpgroups (hopper_on_cpu.h).
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("block_shared")))
#define __grid_constant__

using std::max;
using std::min;

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};
static Dim3 threadIdx, blockIdx, blockDim, gridDim;

typedef _Float16 __half;  // in place of cuda_fp16.h
static inline float __half2float(__half x) { return (float)x; }
static inline __half __float2half_rn(float x) { return (__half)x; }

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}

// The linker defines symbols for the ends of a section; the anchor makes sure that it exists.
extern "C" char __start_block_shared[], __stop_block_shared[];
__shared__ int block_shared_anchor = 0;

namespace emulator {

constexpr unsigned kWarp = 32;
enum class Wait { nothing, block, warp, condition, ended };

// An operation that happens later than its call, and the number of its group.
struct Later {
    int group;
    std::function<void()> happen;
};

struct Copy {
    void* to;
    const void* from;  // null for zeros
    int group;
};

// A fiber starts as a ucontext. After that, longjmp switches between fibers: it takes a tenth of
// swapcontext's time, because it saves no signal mask.
struct Fiber {
    ucontext_t context;
    jmp_buf place;
    bool started = false;
    std::vector<char> stack = std::vector<char>(64 * 1024);
    Wait wait = Wait::nothing;
    unsigned turn = 0;  // number of the warp's collective operation
    std::vector<Copy> copies;
    int group = 0;  // the group of copies that is not yet committed
    std::deque<Later> products;
    int product_group = 0;
};

static std::vector<Fiber> fibers;
static jmp_buf scheduler;
static unsigned current = 0;
static void (*body)(void*) = nullptr;
static void* body_argument = nullptr;
static bool copies_at_once = false, misaligned = false, advanced = false;
static std::deque<std::function<void()>> boxes;  // copies on their way to shared memory

static void stop_at(Wait wait) {
    advanced |= wait != Wait::condition;
    fibers[current].wait = wait;
    if (_setjmp(fibers[current].place) == 0) _longjmp(scheduler, 1);
}

static void entry() {
    body(body_argument);
    stop_at(Wait::ended);
}

// The values of all lanes of the warp, once every lane has given one. Two buffers take turns: when
// a lane writes to a buffer again, all lanes have read its last value.
template <class T>
const T* gathered(const T& value) {
    static T given[2][1024];
    const unsigned self = current, turn = ++fibers[self].turn % 2;
    given[turn][self] = value;
    stop_at(Wait::warp);
    return &given[turn][self / kWarp * kWarp];
}

static const uint4* aligned(const void* address) {
    misaligned |= (size_t)address % 16 != 0;
    return static_cast<const uint4*>(address);
}

static void perform(const Copy& copy) {
    if (copy.from) std::memcpy(copy.to, copy.from, 16);
    else std::memset(copy.to, 0, 16);
}

// Lets the threads from `begin` up to `end` go on if all of them wait for the same.
static bool release(unsigned begin, unsigned end, Wait wait) {
    for (unsigned t = begin; t < end; ++t)
        if (fibers[t].wait != wait) return false;
    for (unsigned t = begin; t < end; ++t) fibers[t].wait = Wait::nothing;
    return true;
}

static void resume(unsigned thread) {
    current = threadIdx.x = thread;
    if (_setjmp(scheduler) != 0) return;
    if (fibers[thread].started) _longjmp(fibers[thread].place, 1);
    fibers[thread].started = true;
    setcontext(&fibers[thread].context);
}

static bool run_block(unsigned threads, bool backwards) {
    std::memset(__start_block_shared, 0xCD, __stop_block_shared - __start_block_shared);
    fibers.resize(threads);
    for (auto& fiber : fibers) {
        fiber.wait = Wait::nothing;
        fiber.started = false;
        fiber.turn = 0;
        fiber.copies.clear();
        fiber.products.clear();
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, entry, 0);
    }
    const unsigned warps = (threads + kWarp - 1) / kWarp;
    boxes.clear();
    do {
        advanced = false;
        for (unsigned w = 0; w < warps; ++w) {
            const unsigned begin = (backwards ? warps - 1 - w : w) * kWarp;
            const unsigned end = min(begin + kWarp, threads);
            for (unsigned t = begin; t < end; ++t)
                if (fibers[t].wait == Wait::condition) fibers[t].wait = Wait::nothing;
            // The warp runs ahead as far as it can: that exposes a missing barrier.
            do {
                for (unsigned i = 0; i < end - begin; ++i) {
                    const unsigned thread = backwards ? end - 1 - i : begin + i;
                    if (fibers[thread].wait == Wait::nothing) resume(thread);
                }
            } while (release(begin, end, Wait::warp));
        }
        if (!advanced && !boxes.empty()) {  // all threads wait for a box
            boxes.back()();  // the last one first: no kernel may rely on an order
            boxes.pop_back();
            advanced = true;
        }
    } while (release(0, threads, Wait::block) || advanced);
    for (const auto& fiber : fibers)
        if (fiber.wait != Wait::ended) return false;
    return true;
}

// Reads an argument at any address, aligned or not, as the driver does.
template <class T>
T copied(const void* from) {
    std::remove_const_t<T> value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <class... Args, size_t... I>
bool run_grid(void (*kernel)(Args...), unsigned blocks, unsigned threads, void** arguments,
              bool backwards, std::index_sequence<I...>) {
    std::tuple<Args...> values{copied<Args>(arguments[I])...};
    auto call = [&] { std::apply(kernel, values); };
    body_argument = &call;
    body = [](void* f) { (*static_cast<decltype(call)*>(f))(); };
    gridDim.x = blocks;
    blockDim.x = threads;
    copies_at_once = backwards;
    misaligned = false;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        if (!run_block(threads, backwards)) return false;
    return !misaligned;
}

// Runs a kernel. Like cuLaunchKernel, it takes a pointer to each argument. Returns false if threads
// of a block wait at different barriers, or if an access to 16 bytes was not aligned to 16.
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
    return emulator::gathered(value)[emulator::current % emulator::kWarp ^ mask];
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
    return emulator::gathered(value)[lane % emulator::kWarp];
}

static inline unsigned __ballot_sync(unsigned, bool vote) {
    const bool* const votes = emulator::gathered(vote);
    unsigned mask = 0;
    for (unsigned lane = 0; lane < emulator::kWarp; ++lane) mask |= (unsigned)votes[lane] << lane;
    return mask;
}
static inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
static inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
static inline int __ffs(unsigned bits) { return __builtin_ffs((int)bits); }
static inline unsigned __reduce_or_sync(unsigned, unsigned bits) {
    const unsigned* const all = emulator::gathered(bits);
    unsigned together = 0;
    for (unsigned lane = 0; lane < emulator::kWarp; ++lane) together |= all[lane];
    return together;
}
static inline int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }

// Fibers take turns, so a plain read-modify-write is atomic.
template <class T>
T atomicAdd(T* cell, T value) {
    const T old = *cell;
    *cell = old + value;
    return old;
}

static inline uint4 __ldg(const uint4* from) { return *emulator::aligned(from); }
static inline uint4 __ldcs(const uint4* from) { return *emulator::aligned(from); }
static inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Replaces kernels/tensor.cuh, which documents each function.

static inline void copy16(void* to, const void* from, bool filled) {
    auto& self = emulator::fibers[emulator::current];
    emulator::aligned(to);
    const emulator::Copy copy{to, filled ? emulator::aligned(from) : nullptr, self.group};
    if (emulator::copies_at_once) emulator::perform(copy);
    else self.copies.push_back(copy);
}

static inline void copy_commit() { ++emulator::fibers[emulator::current].group; }

template <int Newest>
void copy_wait() {
    auto& self = emulator::fibers[emulator::current];
    size_t done = 0;
    while (done < self.copies.size() && self.copies[done].group < self.group - Newest)
        emulator::perform(self.copies[done++]);
    self.copies.erase(self.copies.begin(), self.copies.begin() + done);
}

static inline void load_matrices(unsigned (&words)[4], const void* row) {
    const uint4* const* const rows = emulator::gathered(emulator::aligned(row));
    const unsigned lane = emulator::current % emulator::kWarp;
    for (unsigned m = 0; m < 4; ++m)
        std::memcpy(&words[m], (const unsigned*)rows[m * 8 + lane / 4] + lane % 4, 4);
}

// One step of a matrix product: `product` multiplies the numbers in two words and sums them.
template <class Product>
void multiply_words(float (&sums)[4], const unsigned (&left)[4], const unsigned (&right)[2],
                    Product product) {
    struct Operands {
        unsigned left[4], right[2];
    };
    Operands own;
    std::memcpy(own.left, left, sizeof left);
    std::memcpy(own.right, right, sizeof right);
    const Operands* const all = emulator::gathered(own);
    const unsigned lane = emulator::current % emulator::kWarp;
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = lane / 4, column = lane % 4 * 2 + i % 2;
        for (unsigned word = 0; word < 8; ++word)
            sums[i] += product(all[row * 4 + word % 4].left[i / 2 + word / 4 * 2],
                               all[column * 4 + word % 4].right[word / 4]);
    }
}

static inline void multiply_half(float (&sums)[4], const unsigned (&left)[4],
                                 const unsigned (&right)[2]) {
    multiply_words(sums, left, right, [](unsigned a, unsigned b) {
        __half x[2], y[2];
        std::memcpy(x, &a, sizeof a);
        std::memcpy(y, &b, sizeof b);
        return (float)x[0] * (float)y[0] + (float)x[1] * (float)y[1];
    });
}

static inline void multiply_tf32(float (&sums)[4], const unsigned (&left)[4],
                                 const unsigned (&right)[2]) {
    multiply_words(sums, left, right, [](unsigned a, unsigned b) {
        return __uint_as_float(a & ~0x1fffu) * __uint_as_float(b & ~0x1fffu);
    });
}

static inline unsigned round_tf32(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return x - x == 0 ? (bits + 0x1000u) & ~0x1fffu : bits;
}
