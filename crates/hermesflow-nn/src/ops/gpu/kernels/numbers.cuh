// Numbers in f32 and bf16 as kernels read and write them, and their sums over threads.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

using bf16 = __nv_bfloat16;

__device__ inline float wide(float x) { return x; }
__device__ inline float wide(bf16 x) { return __bfloat162float(x); }
__device__ inline void put(float *to, float x) { *to = x; }
__device__ inline void put(bf16 *to, float x) { *to = __float2bfloat16(x); }

__device__ inline float sum_of_warp(float x) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) x += __shfl_xor_sync(~0u, x, apart);
    return x;
}

// The sum over all threads of the block, in one order.
__device__ inline float sum_of_block(float x) {
    __shared__ float sums[33];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = sum_of_warp(x);
    __syncthreads();
    if (lane == 0) sums[warp] = x;
    __syncthreads();
    if (warp == 0) {
        x = sum_of_warp(lane < warps ? sums[lane] : 0.f);
        if (lane == 0) sums[32] = x;
    }
    __syncthreads();
    return sums[32];
}

// Four adjacent numbers.
__device__ inline float4 four_of(const float *x) { return *reinterpret_cast<const float4 *>(x); }
__device__ inline void put_four(float *to, float4 x) { *reinterpret_cast<float4 *>(to) = x; }
__device__ inline void put_four(bf16 *to, float4 x) {
    union {
        uint2 all;
        __nv_bfloat162 pairs[2];
    } both;
    both.pairs[0] = __floats2bfloat162_rn(x.x, x.y), both.pairs[1] = __floats2bfloat162_rn(x.z, x.w);
    *reinterpret_cast<uint2 *>(to) = both.all;
}
