// The forward pass of attention.
#pragma once

#include "attention_tiles.cuh"
#include "warpgroup.cuh"

// seen = softmax(scale q kᵀ) v, and the log-sum-exp (base 2) of each query's scores if `log_sums` is not null.
// One block of 4 warps has 64 M queries of one head. `scale` is already multiplied by log2 e.
template <int D, int M>
__device__ inline void forward(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *seen_rows, float *log_sums, const Tile *tiles,
                               const Block *blocks, long q_stride, long k_stride, long v_stride, int queries, float scale) {
    constexpr int ROWS = 64 * M, THREADS = 128, SIDES = 2;
    extern __shared__ __align__(128) char memory[];
    bf16 *query_tile = reinterpret_cast<bf16 *>(memory);
    bf16 *key_tiles = query_tile + ROWS * D;
    const Tile tile = tiles[blockIdx.x];
    const int head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    q += head * D, k += head * D, v += head * D;

    load<D, ROWS, THREADS>(query_tile, q, q_stride, tile.row, tile.rows);
    auto fetch = [&](int at) {
        if (at < tile.last) {
            bf16 *into = key_tiles + (at - tile.first) % SIDES * (2 * KEYS * D);
            load_two<D, KEYS, THREADS>(into, k, v, k_stride, v_stride, blocks[at]);
        }
        copies_begun();
    };
    fetch(tile.first);

    float out[M][D / 8][4] = {};
    Seen seen[M][2];
    for (auto &of_rows : seen)
        for (auto &one : of_rows) one = {-INFINITY, 0.f};
    Left queries_of[M][D / 16];

    for (int at = tile.first; at < tile.last; ++at) {
        fetch(at + 1);
        wait_copies<1>();
        __syncthreads();
        if (at == tile.first) {
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int d = 0; d < D / 16; ++d) queries_of[m][d] = left_of<D>(query_tile, warp * 16 * M + m * 16, d * 16);
        }
        bf16 *keys = key_tiles + (at - tile.first) % SIDES * (2 * KEYS * D), *values = keys + KEYS * D;
        const Block block = blocks[at];
        float scores[M][KEYS / 8][4] = {};
#pragma unroll
        for (int d = 0; d < D / 16; ++d)
#pragma unroll
            for (int n = 0; n < KEYS / 16; ++n) {
                Right right[2];
                right_of_rows<D>(right, keys, n * 16, d * 16);
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    multiply_add(scores[m][2 * n], queries_of[m][d], right[0]);
                    multiply_add(scores[m][2 * n + 1], queries_of[m][d], right[1]);
                }
            }
#pragma unroll
        for (int m = 0; m < M; ++m) {
            const int first = warp * 16 * M + m * 16;
            if (!whole(block, first, 16, KEYS)) hide(scores[m], block, first + lane / 4);
            take(scores[m], seen[m], out[m], scale);
        }
#pragma unroll
        for (int n = 0; n < KEYS / 16; ++n) {
            Left weights[M];
#pragma unroll
            for (int m = 0; m < M; ++m) weights[m] = weights_of(scores[m], n);
#pragma unroll
            for (int d = 0; d < D / 16; ++d) {
                Right right[2];
                right_of_columns<D>(right, values, n * 16, d * 16);
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    multiply_add(out[m][2 * d], weights[m], right[0]);
                    multiply_add(out[m][2 * d + 1], weights[m], right[1]);
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < M; ++m)
        put_seen<D>(seen_rows, log_sums, tile, seen[m], out[m], warp * 16 * M + m * 16 + lane / 4, head, lane, queries, scale);
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// `forward` for heads of 64 with products of four warps together: two groups of four warps have 64 queries each.
extern "C" __global__ __launch_bounds__(256, 2) void attention_together_64(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *seen_rows,
                                                                       float *log_sums, const Tile *tiles, const Block *blocks,
                                                                       long q_stride, long k_stride, long v_stride, int queries,
                                                                       float scale) {
    constexpr int D = 64, ROWS = 128, THREADS = 256, SIDES = 3;
    extern __shared__ __align__(128) char together[];
    // Patterns of operands begin at multiples of 1024 bytes.
    bf16 *query_tile = reinterpret_cast<bf16 *>(together + (-shared_address(together) & 1023u));
    bf16 *key_tiles = query_tile + ROWS * D;
    const Tile tile = tiles[blockIdx.x];
    const int head = blockIdx.y, lane = threadIdx.x % 32, group = threadIdx.x / 128, warp = threadIdx.x / 32;
    const int mine = warp * 16 + lane / 4;
    q += head * D, k += head * D, v += head * D;

    load<D, ROWS, THREADS>(query_tile, q, q_stride, tile.row, tile.rows);
    auto fetch = [&](int at) {
        if (at < tile.last) {
            bf16 *into = key_tiles + (at - tile.first) % SIDES * (2 * KEYS * D);
            load_two<D, KEYS, THREADS>(into, k, v, k_stride, v_stride, blocks[at]);
        }
        copies_begun();
    };
    fetch(tile.first);
    fetch(tile.first + 1);
    float out[D / 8][4] = {};
    Seen seen[2] = {{-INFINITY, 0.f}, {-INFINITY, 0.f}};
    const uint32_t asked = shared_address(query_tile + group * 64 * D);
    for (int at = tile.first; at < tile.last; ++at) {
        wait_copies<1>();
        stores_seen_by_products();
        __syncthreads();
        // Into the buffer of the block that all warps have finished with.
        fetch(at + 2);
        const uint32_t keys = shared_address(key_tiles + (at - tile.first) % SIDES * (2 * KEYS * D)), values = keys + KEYS * D * 2;
        const Block block = blocks[at];
        float scores[KEYS / 8][4];
        products_begin();
#pragma unroll
        for (int d = 0; d < D / 16; ++d) multiply_rows(scores, described(asked + d * 32), described(keys + d * 32), d > 0);
        products_committed();
        products_done(scores);
        const int first = warp * 16;
        if (!whole(block, first, 16, KEYS)) hide(scores, block, mine);
        take(scores, seen, out, scale);
        Left weights[KEYS / 16];
#pragma unroll
        for (int n = 0; n < KEYS / 16; ++n) weights[n] = weights_of(scores, n);
        products_begin();
#pragma unroll
        for (int n = 0; n < KEYS / 16; ++n) add_columns(out, weights[n], described(values + n * 16 * D * 2));
        products_committed();
        products_done(out);
    }
    put_seen<D>(seen_rows, log_sums, tile, seen, out, mine, head, lane, queries, scale);
}
#endif

// `forward` for tiles of at most 16 queries: the 4 warps share the blocks of keys, each with sums of its own.
template <int D>
__device__ inline void few(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *seen_rows, float *log_sums, const Tile *tiles,
                           const Block *blocks, long q_stride, long k_stride, long v_stride, int queries, float scale) {
    constexpr int ROWS = 16, WARPS = 4, SOME = 32;
    extern __shared__ __align__(128) char memory[];
    bf16 *query_tile = reinterpret_cast<bf16 *>(memory);
    const Tile tile = tiles[blockIdx.x];
    const int head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    bf16 *mine = query_tile + ROWS * D + warp * (4 * SOME * D);
    q += head * D, k += head * D, v += head * D;

    load<D, ROWS, WARPS * 32>(query_tile, q, q_stride, tile.row, tile.rows);
    copies_begun();
    wait_copies<0>();
    __syncthreads();
    Left queries_of[D / 16];
#pragma unroll
    for (int d = 0; d < D / 16; ++d) queries_of[d] = left_of<D>(query_tile, 0, d * 16);

    // Each warp takes 32 keys of a block at a time: the halves of all blocks go to the warps in rotation.
    const int parts = (tile.last - tile.first) * 2;
    auto part_of = [&](int at) {
        Block block = blocks[tile.first + at / 2];
        const int skipped = at % 2 * SOME;
        block.row += skipped;
        block.rows = max(0, min(SOME, block.rows - skipped));
        return block;
    };
    auto fetch = [&](int at, int side) {
        if (at < parts) {
            const Block block = part_of(at);
            bf16 *into = mine + side * (2 * SOME * D);
            constexpr int PIECES = D / 8;
#pragma unroll
            for (int i = lane; i < SOME * PIECES; i += 32) {
                const int r = i / PIECES, c = i % PIECES * 8;
                const bool there = r < block.rows;
                const long row = block.row + (there ? r : -block.row);
                copy_16(piece<D>(into, r, c), k + row * k_stride + c, there);
                copy_16(piece<D>(into + SOME * D, r, c), v + row * v_stride + c, there);
            }
        }
        copies_begun();
    };
    float out[D / 8][4] = {};
    Seen seen[2] = {{-INFINITY, 0.f}, {-INFINITY, 0.f}};
    fetch(warp, 0);
    for (int at = warp, side = 0; at < parts; at += WARPS, side ^= 1) {
        fetch(at + WARPS, side ^ 1);
        wait_copies<1>();
        __syncwarp();
        const Block block = part_of(at);
        bf16 *keys = mine + side * (2 * SOME * D), *values = keys + SOME * D;
        if (block.rows > 0) {
            float scores[SOME / 8][4] = {};
#pragma unroll
            for (int d = 0; d < D / 16; ++d)
#pragma unroll
                for (int n = 0; n < SOME / 16; ++n) {
                    Right right[2];
                    right_of_rows<D>(right, keys, n * 16, d * 16);
                    multiply_add(scores[2 * n], queries_of[d], right[0]);
                    multiply_add(scores[2 * n + 1], queries_of[d], right[1]);
                }
            if (!whole(block, 0, ROWS, SOME)) hide(scores, block, lane / 4);
            take(scores, seen, out, scale);
#pragma unroll
            for (int n = 0; n < SOME / 16; ++n) {
                const Left weights = weights_of(scores, n);
#pragma unroll
                for (int d = 0; d < D / 16; ++d) {
                    Right right[2];
                    right_of_columns<D>(right, values, n * 16, d * 16);
                    multiply_add(out[2 * d], weights, right[0]);
                    multiply_add(out[2 * d + 1], weights, right[1]);
                }
            }
        }
        __syncwarp();
    }
    wait_copies<0>();
    __syncthreads();
    // The warps' results take the place of their keys in shared memory.
    float *results = reinterpret_cast<float *>(query_tile + ROWS * D);
    constexpr int WIDTH = D + 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float sum = sum_of_four(seen[half].sum);
        float *to = results + (warp * ROWS + half * 8 + lane / 4) * WIDTH;
#pragma unroll
        for (int d = 0; d < D / 8; ++d) {
            to[d * 8 + lane % 4 * 2] = out[d][2 * half];
            to[d * 8 + lane % 4 * 2 + 1] = out[d][2 * half + 1];
        }
        if (lane % 4 == 0) {
            to[D] = seen[half].largest;
            to[D + 1] = sum;
        }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < tile.rows * D; at += WARPS * 32) {
        const int row = at / D, column = at % D;
        float largest = -INFINITY, sum = 0.f, value = 0.f;
        for (int w = 0; w < WARPS; ++w) largest = fmaxf(largest, results[(w * ROWS + row) * WIDTH + D]);
        for (int w = 0; w < WARPS; ++w) {
            const float *from = results + (w * ROWS + row) * WIDTH;
            const float share = from[D] == -INFINITY ? 0.f : power_of_two((from[D] - largest) * scale);
            sum += share * from[D + 1];
            value += share * from[column];
        }
        seen_rows[(tile.row + row) * static_cast<long>(gridDim.y) * D + head * D + column] =
            __float2bfloat16(sum > 0.f ? value / sum : 0.f);
        if (log_sums != nullptr && column == 0)
            log_sums[static_cast<long>(head) * queries + tile.row + row] = sum > 0.f ? largest * scale + log2f(sum) : INFINITY;
    }
}
