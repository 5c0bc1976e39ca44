// Warp-wide products of bf16 tiles on tensor cores, and asynchronous copies into shared memory.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

// The operands of mma.m16n8k16: [16 x 16] in four registers, [16 x 8] in two.
struct Left {
    uint32_t r[4];
};
struct Right {
    uint32_t r[2];
};

// sum [16 x 8] += left right; lane l has rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next.
__device__ inline void multiply_add(float (&sum)[4], const Left &left, const Right &right) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(left.r[0]), "r"(left.r[1]), "r"(left.r[2]), "r"(left.r[3]), "r"(right.r[0]), "r"(right.r[1]));
}

__device__ inline uint32_t shared_address(const void *at) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// Loads four tiles [8 x 8]: lane l gives the address of a row of tile l / 8.
__device__ inline void load_tiles(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
}

__device__ inline void load_tiles_transposed(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
}

// Copies sixteen bytes into shared memory; zeros if `there` is false.
__device__ inline void copy_16(void *to, const void *from, bool there) {
    int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(bytes));
}

__device__ inline void copies_begun() {
    asm volatile("cp.async.commit_group;\n");
}

// Waits until at most N groups of copies are unfinished.
template <int N> __device__ inline void wait_copies() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N));
}

__device__ inline uint32_t pack(float low, float high) {
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&both);
}

// A tile [rows x D] in shared memory: 16-byte pieces of a row are exchanged so that eight rows of one column of pieces lie in
// different banks.
template <int D> __device__ inline __nv_bfloat16 *piece(__nv_bfloat16 *tile, int row, int column) {
    constexpr int PIECES = D / 8;
    const int turn = PIECES >= 8 ? row & 7 : (row / (8 / PIECES)) & (PIECES - 1);
    return tile + row * D + (((column / 8) ^ turn) * 8);
}

// `left` of the rows `row ..` and columns `column ..` of a tile.
template <int D> __device__ inline Left left_of(__nv_bfloat16 *tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    Left left;
    load_tiles(left.r, piece<D>(tile, row + lane % 16, column + lane / 16 * 8));
    return left;
}

// The operand `right[k][n] = tile[n][k]` of 16 rows n: two of 8.
template <int D> __device__ inline void right_of_rows(Right (&right)[2], __nv_bfloat16 *tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    uint32_t r[4];
    load_tiles(r, piece<D>(tile, row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
    right[0] = {r[0], r[1]};
    right[1] = {r[2], r[3]};
}

// The operand `right[k][n] = tile[k][n]` of 16 columns n: two of 8.
template <int D> __device__ inline void right_of_columns(Right (&right)[2], __nv_bfloat16 *tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    uint32_t r[4];
    load_tiles_transposed(r, piece<D>(tile, row + lane % 16, column + lane / 16 * 8));
    right[0] = {r[0], r[1]};
    right[1] = {r[2], r[3]};
}

// The operand `left[m][k] = tile[k][m]` of 16 columns m and 16 rows k.
template <int D> __device__ inline Left left_of_columns(__nv_bfloat16 *tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    Left left;
    load_tiles_transposed(left.r, piece<D>(tile, row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
    return left;
}
