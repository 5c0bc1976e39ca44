// What the kernels of attention share: tiles and blocks of work, copies into shared memory, and the softmax of rows.
#pragma once

#include "tensor_core.cuh"

using bf16 = __nv_bfloat16;

// Rows of one side, and their blocks [first, last) of the other side.
struct Tile {
    int row, rows, first, last;
};

// Rows of the other side. A query q, counted from the first of its tile or block, sees key k, counted in the tensor, if
// begin <= q < end and k < limit + q.
struct Block {
    int row, rows, begin, end, limit;
};

// Copies rows [row, row + rows) of one head into a tile, with zeros after them.
template <int D, int ROWS, int THREADS>
__device__ inline void load(bf16 *tile, const bf16 *from, long stride, int row, int rows) {
    // Each thread copies one column of pieces, from rows that are this far apart.
    constexpr int PIECES = D / 8, APART = THREADS / PIECES;
    static_assert(THREADS % PIECES == 0);
    const int first = threadIdx.x / PIECES, c = threadIdx.x % PIECES * 8;
    const bf16 *at = from + (row + first) * stride + c;
#pragma unroll
    for (int i = 0; i < (ROWS + APART - 1) / APART; ++i, at += APART * stride) {
        const int r = first + i * APART;
        if (r < ROWS) copy_16(piece<D>(tile, r, c), r < rows ? at : from, r < rows);
    }
}

// Copies the rows of a block of two operands, one tile after the other.
template <int D, int ROWS, int THREADS>
__device__ inline void load_two(bf16 *tiles, const bf16 *first, const bf16 *second, long first_stride, long second_stride,
                                const Block &block) {
    load<D, ROWS, THREADS>(tiles, first, first_stride, block.row, block.rows);
    load<D, ROWS, THREADS>(tiles + ROWS * D, second, second_stride, block.row, block.rows);
}

// 2 to the power of x, to 2 units in the last place; zero below 2^-126.
__device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline float largest_of_four(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ inline float sum_of_four(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

// Hides scores [16 x 8 N] of one warp where a query does not see a key; `q` is the first of the lane's two queries.
template <int N> __device__ inline void hide(float (&scores)[N][4], const Block &block, int q) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = q + 8 * half;
        int seen = min(block.rows, block.limit - block.row + row);
        if (row < block.begin || row >= block.end) seen = 0;
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e)
                if (n * 8 + lane % 4 * 2 + e >= seen) scores[n][2 * half + e] = -INFINITY;
    }
}

// Whether all queries of [q, q + rows) see all of 8 N keys.
__device__ inline bool whole(const Block &block, int q, int rows, int keys) {
    return block.rows == keys && block.begin <= q && q + rows <= block.end && block.limit - block.row + q >= keys;
}

// The state of a row's softmax: the largest score so far, and the sum of the exponentials of all scores minus that.
struct Seen {
    float largest, sum;
};

// Adds scores [16 x 8 N] to the rows' softmax: the scores become weights, and `out` is rescaled to them.
template <int N, int M>
__device__ inline void take(float (&scores)[N][4], Seen (&seen)[2], float (&out)[M][4], float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float largest = seen[half].largest;
#pragma unroll
        for (int n = 0; n < N; ++n) largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
        largest = largest_of_four(largest);
        // Where a row has seen no key yet, all weights are zero.
        const float from = largest == -INFINITY ? 0.f : largest * scale;
        const float shrink = power_of_two(seen[half].largest * scale - from);
        float sum = 0.f;
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; ++e) {
                scores[n][e] = power_of_two(scores[n][e] * scale - from);
                sum += scores[n][e];
            }
        seen[half] = {largest, seen[half].sum * shrink + sum};
        // After a few blocks the largest score rarely changes.
        if (__any_sync(~0u, shrink != 1.f)) {
#pragma unroll
            for (int m = 0; m < M; ++m) {
                out[m][2 * half] *= shrink;
                out[m][2 * half + 1] *= shrink;
            }
        }
    }
}

// Weights [16 x 16] from column 16 k of the scores on, as an operand.
template <int N> __device__ inline Left weights_of(const float (&scores)[N][4], int k) {
    const float(&a)[4] = scores[2 * k];
    const float(&b)[4] = scores[2 * k + 1];
    return {pack(a[0], a[1]), pack(a[2], a[3]), pack(b[0], b[1]), pack(b[2], b[3])};
}

// Writes a lane's part of one row of sums [16 x 8 M], times a number, from `to` on.
template <int M> __device__ inline void put_row(bf16 *to, const float (&sums)[M][4], int half, float by) {
#pragma unroll
    for (int m = 0; m < M; ++m)
        *reinterpret_cast<uint32_t *>(to + m * 8) = pack(sums[m][2 * half] * by, sums[m][2 * half + 1] * by);
}

// Writes the results of 16 rows of one warp; the lane has row `mine` of the tile and row `mine + 8`.
template <int D>
__device__ inline void put_seen(bf16 *seen_rows, float *log_sums, const Tile &tile, const Seen (&seen)[2],
                                const float (&out)[D / 8][4], int mine, int head, int lane, int queries, float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = mine + half * 8;
        const float sum = sum_of_four(seen[half].sum);
        if (row >= tile.rows) continue;
        const float scaled = sum > 0.f ? 1.f / sum : 0.f;
        put_row(seen_rows + (tile.row + row) * static_cast<long>(gridDim.y) * D + head * D + lane % 4 * 2, out, half, scaled);
        if (log_sums != nullptr && lane % 4 == 0)
            log_sums[static_cast<long>(head) * queries + tile.row + row] =
                sum > 0.f ? seen[half].largest * scale + log2f(sum) : INFINITY;
    }
}

constexpr int KEYS = 64;
