// Products by four warps together, as Hopper GPUs (compute capability 9.0) have them: operands of bf16 in shared memory, or the
// left one in registers, sums in f32 in registers.
#pragma once

#include <stdint.h>

// The descriptor of an operand with rows of 64 numbers: tiles as `piece<64>` lays them out, eight rows of which are one pattern of 1024
// bytes. `start` is an address in shared memory; patterns begin at multiples of 1024.
__device__ inline uint64_t described(uint32_t start) {
    constexpr uint64_t PATTERN = 1024 >> 4, EXCHANGED = 1ull << 62;
    return static_cast<uint64_t>(start >> 4 & 0x3fff) | PATTERN << 16 | PATTERN << 32 | EXCHANGED;
}

__device__ inline void products_begin() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ inline void products_committed() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }

// Waits for all products; reads of the sums must not be moved before this.
__device__ inline void products_done(float (&sums)[8][4]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;\n" ::: "memory");
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(sums[n][e])::"memory");
}

// Makes what threads wrote to shared memory with ordinary stores visible to products.
__device__ inline void stores_seen_by_products() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

#define SUMS_8(x)                                                                                                                 \
    "+f"(x[0][0]), "+f"(x[0][1]), "+f"(x[0][2]), "+f"(x[0][3]), "+f"(x[1][0]), "+f"(x[1][1]), "+f"(x[1][2]), "+f"(x[1][3]),       \
        "+f"(x[2][0]), "+f"(x[2][1]), "+f"(x[2][2]), "+f"(x[2][3]), "+f"(x[3][0]), "+f"(x[3][1]), "+f"(x[3][2]), "+f"(x[3][3]),   \
        "+f"(x[4][0]), "+f"(x[4][1]), "+f"(x[4][2]), "+f"(x[4][3]), "+f"(x[5][0]), "+f"(x[5][1]), "+f"(x[5][2]), "+f"(x[5][3]),   \
        "+f"(x[6][0]), "+f"(x[6][1]), "+f"(x[6][2]), "+f"(x[6][3]), "+f"(x[7][0]), "+f"(x[7][1]), "+f"(x[7][2]), "+f"(x[7][3])
#define NAMES_32                                                                                                                  \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"

// sums [64 x 64] = left rightᵀ, or added to them: 16 columns of rows of both.
__device__ inline void multiply_rows(float (&sums)[8][4], uint64_t left, uint64_t right, bool added) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " NAMES_32 ", %32, %33, p, 1, 1, 0, 0;\n}\n"
                 : SUMS_8(sums)
                 : "l"(left), "l"(right), "r"(static_cast<int>(added)));
}

// sums [64 x 64] += left right: 16 rows of `right`, and as many columns of `left` from registers.
__device__ inline void add_columns(float (&sums)[8][4], const Left &left, uint64_t right) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " NAMES_32 ", {%32,%33,%34,%35}, %36, 1, 1, 1, 1;\n"
                 : SUMS_8(sums)
                 : "r"(left.r[0]), "r"(left.r[1]), "r"(left.r[2]), "r"(left.r[3]), "l"(right));
}
