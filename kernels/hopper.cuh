// What C++ has no words for on Hopper (sm_90a): boxes of a matrix that come to shared memory by
// themselves, barriers that count their bytes, and products of a warpgroup, four warps together.
//
// The tests compile the kernels as C++, with functions of the same names. What is described here is
// from the PTX manual: tensor maps and cp.async.bulk.tensor, mbarrier, and wgmma with its layout of
// matrices in shared memory, whose rows are 128 bytes and swizzled.
#pragma once

#define LINE 128  // bytes: a row of a box

#ifdef __CUDACC__

typedef unsigned long long Barrier;

// As the driver encodes it: where a matrix is, its shape, and how much of it a copy takes.
struct alignas(64) TensorMap {
    unsigned char encoded[128];
};

extern __shared__ __align__(1024) unsigned char dynamic_shared[];

__device__ __forceinline__ unsigned shared_address(const void* at) {
    return (unsigned)__cvta_generic_to_shared(at);
}

__device__ __forceinline__ void barrier_init(Barrier* barrier, const int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}

// Makes barriers that were just made known to what copies; before __syncthreads.
__device__ __forceinline__ void barriers_made() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void arrive(Barrier* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
                 : "memory");
}

// Arrives, and has the barrier wait for so many bytes more.
__device__ __forceinline__ void arrive_for(Barrier* barrier, const int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}

// Waits for the end of a barrier's phase: of its first, third and so on at parity 0. The phase
// before the first has ended.
__device__ __forceinline__ void wait(Barrier* barrier, const int parity) {
    unsigned ended;
    do {
        asm volatile(
            "{\n"
            ".reg .pred ended;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
            "selp.u32 %0, 1, 0, ended;\n"
            "}"
            : "=r"(ended)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    } while (!ended);
}

// Has the box that begins at a column and a row copied, zeros where it reaches past the matrix; the
// barrier learns of its bytes.
__device__ __forceinline__ void copy_box(void* to, const TensorMap* map, const int column,
                                         const int row, Barrier* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to)),
        "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
        : "memory");
}

// How many registers a thread of this warpgroup has from here on.
template <int Registers>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}

// Before products: what was written to their registers counts.
__device__ __forceinline__ void products_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void products_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits for all products but those of the newest `Newest` groups.
template <int Newest>
__device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Newest) : "memory");
}

// Keeps the compiler from reading sums before a wait that does not name them.
template <int Count>
__device__ __forceinline__ void settle(float (&sums)[Count]) {
#pragma unroll
    for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

#define SUMS4(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define SUMS16(i) SUMS4(i), SUMS4(i + 4), SUMS4(i + 8), SUMS4(i + 12)
#define SUMS64(i) SUMS16(i), SUMS16(i + 16), SUMS16(i + 32), SUMS16(i + 48)

// sums (+)= left * right over 16 halves of 64 rows and of 256 rows. Of the group's 64 rows a warp has
// 16; of these, lane l has sums 4 c + i, of row l / 4 + i / 2 * 8 and of column 8 c + l % 4 * 2 + i % 2.
__device__ __forceinline__ void multiply_group(float (&sums)[128], const unsigned long long left,
                                               const unsigned long long right, const bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
        "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
        "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
        "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, "
        "%66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "
        "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, "
        "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, "
        "%126, %127}, "
        "%128, %129, add, 1, 1, 0, 0;\n"
        "}"
        : SUMS64(0), SUMS64(64)
        : "l"(left), "l"(right), "r"((int)add));
}

#endif

// A matrix in shared memory as products take it: rows of 16 halves out of LINE bytes, from `at` on, of
// which 8 rows after 8 begin on 1024 bytes. In each row of a LINE, 16-byte piece p is at p ^ row % 8.
__device__ __forceinline__ unsigned long long matrix(const void* at) {
    const unsigned long long start = shared_address(at) >> 4, eight_rows = 8 * LINE >> 4;
    return 1ull << 62 | eight_rows << 32 | 1ull << 16 | start;
}
