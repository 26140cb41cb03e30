// What C++ has no words for: asynchronous copies, matrix loads, tensor cores (sm_80 on). The tests
// compile the kernels as C++, with functions of the same names and fragments laid out as in PTX.
//
// A step is 32 bytes of a row as 8 words: 16 halves or 8 floats. Of a left fragment's 16 rows, lane
// l holds rows l / 4 and l / 4 + 8 of word l % 4, then both of word l % 4 + 4; of a right fragment's
// 8 rows, those words of row l / 4. Of the products it holds columns l % 4 * 2 and the next of row
// l / 4, then of row l / 4 + 8.
#pragma once

#ifdef __CUDACC__

// Copies 16 bytes to shared memory in the background, or 16 zeros.
__device__ __forceinline__ void copy16(void* to, const void* from, const bool filled) {
    const unsigned at = (unsigned)__cvta_generic_to_shared(to);
    const int bytes = filled ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes)
                 : "memory");
}

// Closes a group of copies.
__device__ __forceinline__ void copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for this thread's copies but for those of the newest `Newest` groups.
template <int Newest>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Newest) : "memory");
}

// Four matrices of 8 rows of 16 bytes in shared memory; lane 8 * m + r says where row r of m is.
__device__ __forceinline__ void load_matrices(unsigned (&words)[4], const void* row) {
    const unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(at)
                 : "memory");
}

// sums += left * right over the 16 halves of a step. Products are exact, sums float.
__device__ __forceinline__ void multiply_half(float (&sums)[4], const unsigned (&left)[4],
                                              const unsigned (&right)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}

// The same over the 8 floats of a step, of which only the upper 19 bits count.
__device__ __forceinline__ void multiply_tf32(float (&sums)[4], const unsigned (&left)[4],
                                              const unsigned (&right)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}

// The nearest float of 19 bits.
__device__ __forceinline__ unsigned round_tf32(const float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

#endif
