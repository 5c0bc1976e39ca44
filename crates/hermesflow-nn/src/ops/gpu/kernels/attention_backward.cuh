// The backward pass of attention.
#pragma once

#include "attention_tiles.cuh"

// What the backward pass subtracts from each query's gradients of scores: the product of its result and the result's gradient. One
// warp for each head of a query.
template <int D>
__device__ inline void along(const bf16 *seen, const bf16 *grad, float *to, int queries, int heads) {
    const int at = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (at >= queries * heads) return;
    const int query = at / heads, head = at % heads;
    const long from = (static_cast<long>(query) * heads + head) * D;
    float sum = 0.f;
    for (int i = lane; i < D; i += 32) sum += __bfloat162float(seen[from + i]) * __bfloat162float(grad[from + i]);
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(~0u, sum, apart);
    if (lane == 0) to[static_cast<long>(head) * queries + query] = sum;
}

constexpr int BACK = 64;

// The gradients of queries. One block of 4 warps has 64 queries of one head.
template <int D>
__device__ inline void back_to_queries(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *grad, const float *log_sums,
                                       const float *along, bf16 *d_query, const Tile *tiles, const Block *blocks, long stride,
                                       int queries, float scale) {
    constexpr int THREADS = 128, SIDES = 2;
    extern __shared__ __align__(128) char memory[];
    bf16 *query_tile = reinterpret_cast<bf16 *>(memory), *grad_tile = query_tile + BACK * D, *key_tiles = grad_tile + BACK * D;
    const Tile tile = tiles[blockIdx.x];
    const int head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32, mine = warp * 16 + lane / 4;
    q += head * D, k += head * D, v += head * D, grad += head * D;
    load<D, BACK, THREADS>(query_tile, q, stride, tile.row, tile.rows);
    load<D, BACK, THREADS>(grad_tile, grad, stride, tile.row, tile.rows);
    auto fetch = [&](int at) {
        if (at < tile.last) {
            bf16 *into = key_tiles + (at - tile.first) % SIDES * (2 * BACK * D);
            load_two<D, BACK, THREADS>(into, k, v, stride, stride, blocks[at]);
        }
        copies_begun();
    };
    fetch(tile.first);
    float sums[2], means[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = mine + half * 8;
        const long at = static_cast<long>(head) * queries + tile.row + row;
        sums[half] = row < tile.rows ? log_sums[at] : INFINITY;
        means[half] = row < tile.rows ? along[at] : 0.f;
    }
    float out[D / 8][4] = {};
    const float log_scale = scale * 1.4426950408889634f;
    for (int at = tile.first; at < tile.last; ++at) {
        fetch(at + 1);
        wait_copies<1>();
        __syncthreads();
        bf16 *keys = key_tiles + (at - tile.first) % SIDES * (2 * BACK * D), *values = keys + BACK * D;
        const Block block = blocks[at];
        float scores[BACK / 8][4] = {}, grads[BACK / 8][4] = {};
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
            const Left of_query = left_of<D>(query_tile, warp * 16, d * 16), of_grad = left_of<D>(grad_tile, warp * 16, d * 16);
#pragma unroll
            for (int n = 0; n < BACK / 16; ++n) {
                Right right[2];
                right_of_rows<D>(right, keys, n * 16, d * 16);
                multiply_add(scores[2 * n], of_query, right[0]);
                multiply_add(scores[2 * n + 1], of_query, right[1]);
                right_of_rows<D>(right, values, n * 16, d * 16);
                multiply_add(grads[2 * n], of_grad, right[0]);
                multiply_add(grads[2 * n + 1], of_grad, right[1]);
            }
        }
        if (!whole(block, warp * 16, 16, BACK)) hide(scores, block, mine);
#pragma unroll
        for (int n = 0; n < BACK / 8; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                scores[n][e] = power_of_two(scores[n][e] * log_scale - sums[e / 2]) * (grads[n][e] - means[e / 2]);
#pragma unroll
        for (int n = 0; n < BACK / 16; ++n) {
            const Left left = weights_of(scores, n);
#pragma unroll
            for (int d = 0; d < D / 16; ++d) {
                Right right[2];
                right_of_columns<D>(right, keys, n * 16, d * 16);
                multiply_add(out[2 * d], left, right[0]);
                multiply_add(out[2 * d + 1], left, right[1]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = mine + half * 8;
        if (row >= tile.rows) continue;
        put_row(d_query + (tile.row + row) * stride + head * D + lane % 4 * 2, out, half, scale);
    }
}

// The gradients of keys and values. One block of 4 warps has 64 keys of one head; its blocks hold queries.
template <int D>
__device__ inline void back_to_keys(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *grad, const float *log_sums,
                                    const float *along, bf16 *d_key, bf16 *d_value, const Tile *tiles, const Block *blocks,
                                    long stride, int queries, float scale) {
    constexpr int THREADS = 128, SIDES = 2;
    extern __shared__ __align__(128) char memory[];
    bf16 *key_tile = reinterpret_cast<bf16 *>(memory), *value_tile = key_tile + BACK * D, *query_tiles = value_tile + BACK * D;
    float *numbers = reinterpret_cast<float *>(query_tiles + SIDES * 2 * BACK * D);
    const Tile tile = tiles[blockIdx.x];
    const int head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32, mine = warp * 16 + lane / 4;
    q += head * D, k += head * D, v += head * D, grad += head * D;
    load<D, BACK, THREADS>(key_tile, k, stride, tile.row, tile.rows);
    load<D, BACK, THREADS>(value_tile, v, stride, tile.row, tile.rows);
    auto fetch = [&](int at) {
        if (at < tile.last) {
            const int side = (at - tile.first) % SIDES;
            const Block block = blocks[at];
            bf16 *into = query_tiles + side * (2 * BACK * D);
            load_two<D, BACK, THREADS>(into, q, grad, stride, stride, block);
            if (threadIdx.x < BACK) {
                const bool there = threadIdx.x < block.rows;
                const long from = static_cast<long>(head) * queries + block.row + threadIdx.x;
                numbers[side * 2 * BACK + threadIdx.x] = there ? log_sums[from] : INFINITY;
                numbers[side * 2 * BACK + BACK + threadIdx.x] = there ? along[from] : 0.f;
            }
        }
        copies_begun();
    };
    fetch(tile.first);
    float of_keys[D / 8][4] = {}, of_values[D / 8][4] = {};
    const float log_scale = scale * 1.4426950408889634f;
    for (int at = tile.first; at < tile.last; ++at) {
        fetch(at + 1);
        wait_copies<1>();
        __syncthreads();
        const int side = (at - tile.first) % SIDES;
        bf16 *asked = query_tiles + side * (2 * BACK * D), *grads = asked + BACK * D;
        const float *sums = numbers + side * 2 * BACK, *means = sums + BACK;
        const Block block = blocks[at];
        // Transposed: rows are keys, columns are queries.
        float scores[BACK / 8][4] = {}, slopes[BACK / 8][4] = {};
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
            const Left of_key = left_of<D>(key_tile, warp * 16, d * 16), of_value = left_of<D>(value_tile, warp * 16, d * 16);
#pragma unroll
            for (int n = 0; n < BACK / 16; ++n) {
                Right right[2];
                right_of_rows<D>(right, asked, n * 16, d * 16);
                multiply_add(scores[2 * n], of_key, right[0]);
                multiply_add(scores[2 * n + 1], of_key, right[1]);
                right_of_rows<D>(right, grads, n * 16, d * 16);
                multiply_add(slopes[2 * n], of_value, right[0]);
                multiply_add(slopes[2 * n + 1], of_value, right[1]);
            }
        }
#pragma unroll
        for (int n = 0; n < BACK / 8; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int query = n * 8 + lane % 4 * 2 + e % 2, key = mine + e / 2 * 8;
                const bool meet = query >= block.begin && query < block.end && key < tile.rows && tile.row + key < block.limit + query;
                const float weight = meet ? power_of_two(scores[n][e] * log_scale - sums[query]) : 0.f;
                scores[n][e] = weight;
                slopes[n][e] = weight * (slopes[n][e] - means[query]);
            }
#pragma unroll
        for (int n = 0; n < BACK / 16; ++n) {
            const Left weights = weights_of(scores, n), slope = weights_of(slopes, n);
#pragma unroll
            for (int d = 0; d < D / 16; ++d) {
                Right right[2];
                right_of_columns<D>(right, grads, n * 16, d * 16);
                multiply_add(of_values[2 * d], weights, right[0]);
                multiply_add(of_values[2 * d + 1], weights, right[1]);
                right_of_columns<D>(right, asked, n * 16, d * 16);
                multiply_add(of_keys[2 * d], slope, right[0]);
                multiply_add(of_keys[2 * d + 1], slope, right[1]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = mine + half * 8;
        if (row >= tile.rows) continue;
        const long to = (tile.row + row) * stride + head * D + lane % 4 * 2;
#pragma unroll
        for (int d = 0; d < D / 8; ++d) {
            *reinterpret_cast<uint32_t *>(d_key + to + d * 8) = pack(of_keys[d][2 * half] * scale, of_keys[d][2 * half + 1] * scale);
            *reinterpret_cast<uint32_t *>(d_value + to + d * 8) = pack(of_values[d][2 * half], of_values[d][2 * half + 1]);
        }
    }
}
