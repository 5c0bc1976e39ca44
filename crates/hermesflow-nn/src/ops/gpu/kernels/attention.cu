// Attention over packed sequences whose scores never leave the chip: Dao, "FlashAttention-2" (arXiv:2307.08691).
//
// Work comes as tiles of queries with lists of blocks of keys (see work.rs). Every sum has one order, so that the same inputs give
// the same bits: the backward pass goes over the blocks twice, once for each side, and needs no atomic sums.

#include "tensor_core.cuh"
#include "warpgroup.cuh"

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

#define ATTENTION(D, M)                                                                                                           \
    extern "C" __global__ __launch_bounds__(128) void attention_##D(                                                             \
        const bf16 *q, const bf16 *k, const bf16 *v, bf16 *seen, float *log_sums, const Tile *tiles, const Block *blocks,         \
        long q_stride, long k_stride, long v_stride, int queries, float scale) {                                                  \
        forward<D, M>(q, k, v, seen, log_sums, tiles, blocks, q_stride, k_stride, v_stride, queries, scale);                        \
    }                                                                                                                             \
    extern "C" __global__ __launch_bounds__(128) void attention_few_##D(                                                         \
        const bf16 *q, const bf16 *k, const bf16 *v, bf16 *seen, float *log_sums, const Tile *tiles, const Block *blocks,        \
        long q_stride, long k_stride, long v_stride, int queries, float scale) {                                                 \
        few<D>(q, k, v, seen, log_sums, tiles, blocks, q_stride, k_stride, v_stride, queries, scale);                            \
    }                                                                                                                            \
    extern "C" __global__ void attention_along_##D(const bf16 *seen, const bf16 *grad, float *to, int queries, int heads) {       \
        along<D>(seen, grad, to, queries, heads);                                                                                 \
    }                                                                                                                             \
    extern "C" __global__ __launch_bounds__(128) void attention_back_to_queries_##D(                                             \
        const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *grad, const float *log_sums, const float *means, bf16 *d_query,  \
        const Tile *tiles, const Block *blocks, long stride, int queries, float scale) {                                          \
        back_to_queries<D>(q, k, v, grad, log_sums, means, d_query, tiles, blocks, stride, queries, scale);                       \
    }                                                                                                                             \
    extern "C" __global__ __launch_bounds__(128) void attention_back_to_keys_##D(                                                \
        const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *grad, const float *log_sums, const float *means, bf16 *d_key,    \
        bf16 *d_value, const Tile *tiles, const Block *blocks, long stride, int queries, float scale) {                           \
        back_to_keys<D>(q, k, v, grad, log_sums, means, d_key, d_value, tiles, blocks, stride, queries, scale);                   \
    }

ATTENTION(16, 2)
ATTENTION(32, 2)
ATTENTION(64, 2)
ATTENTION(128, 1)
