// Attention over packed sequences whose scores never leave the chip: Dao, "FlashAttention-2" (arXiv:2307.08691).
//
// Work comes as tiles of queries with lists of blocks of keys (see work.rs). Every sum has one order, so that the same inputs give
// the same bits: the backward pass goes over the blocks twice, once for each side, and needs no atomic sums.

#include "attention_forward.cuh"
#include "attention_backward.cuh"

// The kernels for heads of size D, with 64 M queries per block of the forward pass.
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
