// Replaces kernels/hopper.cuh, which documents each function. Include it after cuda_on_cpu.h.
//
// In the forward order of warps, a box arrives when no thread can go on without it, and a product
// is computed when a thread waits for it. In the backward order both happen at once. A kernel that
// reads too early, or overwrites too soon, gives a wrong result in one of the orders. A barrier
// that is never completed ends the block with an error; a GPU would hang.
#pragma once

typedef unsigned long long Barrier;

__shared__ unsigned char dynamic_shared[232448] __attribute__((aligned(1024)));

// Stands for the tensor map that the driver encodes.
struct alignas(64) TensorMap {
    const unsigned char* memory;
    long long rows, row_bytes, item_bytes, box_rows;
    unsigned char rest[128 - 5 * 8];
};

namespace emulator {

constexpr long long kLine = 128;  // bytes of a box's row

struct Arrivals {
    unsigned short expected;
    unsigned short missing : 15;
    unsigned short phase : 1;
    int bytes;
};
static_assert(sizeof(Arrivals) == sizeof(Barrier));

static Arrivals& arrivals(Barrier* barrier) { return *reinterpret_cast<Arrivals*>(barrier); }

static void settle_barrier(Arrivals& barrier) {
    if (barrier.missing || barrier.bytes) return;
    barrier.phase ^= 1;
    barrier.missing = barrier.expected;
}

// The 128-byte swizzle: 16-byte piece p of a row is stored at p ^ row % 8. In other words, bits 4
// to 6 of an address are XORed with bits 7 to 9.
static unsigned swizzled(unsigned address) { return address ^ (address >> 7 & 7) << 4; }

static void land(unsigned char* to, const TensorMap& map, int column, int row, Barrier* barrier) {
    const unsigned first = (unsigned)(to - (unsigned char*)__start_block_shared);
    for (long long r = 0; r < map.box_rows; ++r)
        for (long long piece = 0; piece < kLine; piece += 16) {
            const long long at = column * map.item_bytes + piece;
            unsigned char bytes[16] = {};
            for (int i = 0; i < 16 && row + r < map.rows && at + i < map.row_bytes; ++i)
                bytes[i] = map.memory[(row + r) * map.row_bytes + at + i];
            const unsigned place = first + (unsigned)(r * kLine + piece);
            std::memcpy(__start_block_shared + swizzled(place), bytes, 16);
        }
    Arrivals& found = arrivals(barrier);
    found.bytes -= (int)(map.box_rows * kLine);
    settle_barrier(found);
}

// Returns whether a descriptor states rows of 128 bytes, the 128-byte swizzle, and a pattern that
// begins on a multiple of 1024 bytes.
static bool in_lines(unsigned long long matrix) {
    return matrix >> 62 == 1 && (matrix >> 49 & 7) == 0 && (matrix << 4 & 0x3ff) < 128;
}

// Reads 16 halves of a row of the matrix that a descriptor, made by matrix(), describes.
static void row_of(unsigned long long matrix, unsigned row, float (&values)[16]) {
    const unsigned start = (unsigned)(matrix & 0x3fff) << 4;
    const unsigned eight_rows = (unsigned)(matrix >> 32 & 0x3fff) << 4;
    for (unsigned piece = 0; piece < 2; ++piece) {
        const unsigned linear = start + row / 8 * eight_rows + row % 8 * 128 + piece * 16;
        __half halves[8];
        std::memcpy(halves, __start_block_shared + swizzled(linear), 16);
        for (unsigned i = 0; i < 8; ++i) values[piece * 8 + i] = halves[i];
    }
}

static void multiply(float (&sums)[128], unsigned long long left, unsigned long long right,
                     bool add, unsigned thread) {
    const unsigned lane = thread % kWarp, warp = thread / kWarp % 4;
    float rows[2][16], column[16];
    for (unsigned i = 0; i < 2; ++i) row_of(left, warp * 16 + lane / 4 + i * 8, rows[i]);
    for (unsigned c = 0; c < 64; ++c) {
        row_of(right, c / 2 * 8 + lane % 4 * 2 + c % 2, column);
        for (unsigned i = 0; i < 2; ++i) {
            float& sum = sums[c / 2 * 4 + i * 2 + c % 2];
            float dot = add ? sum : 0.0f;
            for (unsigned k = 0; k < 16; ++k) dot += rows[i][k] * column[k];
            sum = dot;
        }
    }
}

}  // namespace emulator

static unsigned shared_address(const void* at) {
    return (unsigned)((const char*)at - __start_block_shared);
}

static inline void barrier_init(Barrier* barrier, int count) {
    emulator::arrivals(barrier) = {(unsigned short)count, (unsigned short)count, 0, 0};
}
static inline void barriers_made() {}

static inline void arrive(Barrier* barrier) {
    auto& found = emulator::arrivals(barrier);
    --found.missing;
    emulator::settle_barrier(found);
}

static inline void arrive_for(Barrier* barrier, int bytes) {
    emulator::arrivals(barrier).bytes += bytes;
    arrive(barrier);
}

static inline void wait(Barrier* barrier, int parity) {
    while (emulator::arrivals(barrier).phase == parity)
        emulator::stop_at(emulator::Wait::condition);
    emulator::advanced = true;
}

static inline void copy_box(void* to, const TensorMap* map, int column, int row,
                            Barrier* barrier) {
    emulator::misaligned |= shared_address(to) % 1024 != 0;
    const auto happen = [=] { emulator::land((unsigned char*)to, *map, column, row, barrier); };
    if (emulator::copies_at_once) happen();
    else emulator::boxes.push_back(happen);
}

template <int>
void give_registers() {}
template <int>
void take_registers() {}
template <int Count>
void settle(float (&)[Count]) {}

static inline void products_begin() {}
static inline void products_commit() { ++emulator::fibers[emulator::current].product_group; }

template <int Newest>
void products_wait() {
    auto& self = emulator::fibers[emulator::current];
    while (!self.products.empty() && self.products.front().group < self.product_group - Newest) {
        self.products.front().happen();
        self.products.pop_front();
    }
}

static inline void multiply_group(float (&sums)[128], unsigned long long left,
                                  unsigned long long right, bool add) {
    // All threads of a warp must pass the same operands.
    const auto* const all = emulator::gathered(std::make_tuple(left, right, add));
    emulator::misaligned |= all[0] != std::make_tuple(left, right, add);
    emulator::misaligned |= !emulator::in_lines(left) || !emulator::in_lines(right);
    const unsigned thread = emulator::current;
    float (*const own)[128] = &sums;
    const auto happen = [=] { emulator::multiply(*own, left, right, add, thread); };
    auto& self = emulator::fibers[thread];
    if (emulator::copies_at_once) happen();
    else self.products.push_back({self.product_group, happen});
}
