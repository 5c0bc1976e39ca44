// What lies between the products of a decoder block, where each number is read once and written once; the optimizer's step, and
// draws from logits.

#include "logits.cuh"
#include "numbers.cuh"

// LayerNorm of rows [n, width]: one block per row, whose threads hold the row, FOURS times four numbers each; width is a multiple
// of four.
template <int FOURS, typename To>
__device__ inline void norm(const float *x, const float *weight, const float *bias, To *y, int width, float eps) {
    x += static_cast<long>(blockIdx.x) * width, y += static_cast<long>(blockIdx.x) * width;
    float4 held[FOURS];
    float sum = 0.f;
#pragma unroll
    for (int f = 0; f < FOURS; ++f) {
        const int i = (threadIdx.x + f * blockDim.x) * 4;
        held[f] = i < width ? four_of(x + i) : make_float4(0.f, 0.f, 0.f, 0.f);
        sum += held[f].x + held[f].y + held[f].z + held[f].w;
    }
    const float mean = sum_of_block(sum) / width;
    float squares = 0.f;
#pragma unroll
    for (int f = 0; f < FOURS; ++f) {
        if ((threadIdx.x + f * blockDim.x) * 4 >= width) continue;
        float4 &v = held[f];
        v.x -= mean, v.y -= mean, v.z -= mean, v.w -= mean;
        squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    const float scale = rsqrtf(sum_of_block(squares) / width + eps);
#pragma unroll
    for (int f = 0; f < FOURS; ++f) {
        const int i = (threadIdx.x + f * blockDim.x) * 4;
        if (i >= width) continue;
        const float4 v = held[f], w = four_of(weight + i), b = four_of(bias + i);
        put_four(y + i, make_float4(v.x * scale * w.x + b.x, v.y * scale * w.y + b.y, v.z * scale * w.z + b.z,
                                    v.w * scale * w.w + b.w));
    }
}

extern "C" __global__ void norm_bf16(const float *x, const float *weight, const float *bias, bf16 *y, int width, float eps) {
    norm<2>(x, weight, bias, y, width, eps);
}
extern "C" __global__ void norm_f32(const float *x, const float *weight, const float *bias, float *y, int width, float eps) {
    norm<2>(x, weight, bias, y, width, eps);
}

// With n = (x - mean) scale and a = g weight: dx = base + scale (a - mean(a) - n mean(a n)). A block takes every gridDim.x-th row;
// sums[block] = its sums of g n, then of g. The threads of a block hold a row, eight numbers each; width is a multiple of four.
extern "C" __global__ void norm_back(const float *x, const float *weight, const float *grad, const float *base, float *dx,
                                     float *sums, long rows, int width, float eps) {
    constexpr int FOURS = 2, EACH = 4 * FOURS;
    float of_weight[EACH] = {}, of_bias[EACH] = {}, w[EACH];
#pragma unroll
    for (int f = 0; f < FOURS; ++f) {
        const int i = (threadIdx.x + f * blockDim.x) * 4;
        const float4 four = i < width ? four_of(weight + i) : make_float4(0.f, 0.f, 0.f, 0.f);
        w[4 * f] = four.x, w[4 * f + 1] = four.y, w[4 * f + 2] = four.z, w[4 * f + 3] = four.w;
    }
    for (long row = blockIdx.x; row < rows; row += gridDim.x) {
        const long from = row * width;
        float n[EACH], g[EACH], sum = 0.f;
#pragma unroll
        for (int f = 0; f < FOURS; ++f) {
            const int i = (threadIdx.x + f * blockDim.x) * 4;
            const float4 zero = make_float4(0.f, 0.f, 0.f, 0.f);
            const float4 v = i < width ? four_of(x + from + i) : zero, d = i < width ? four_of(grad + from + i) : zero;
            n[4 * f] = v.x, n[4 * f + 1] = v.y, n[4 * f + 2] = v.z, n[4 * f + 3] = v.w;
            g[4 * f] = d.x, g[4 * f + 1] = d.y, g[4 * f + 2] = d.z, g[4 * f + 3] = d.w;
            sum += v.x + v.y + v.z + v.w;
        }
        const float mean = sum_of_block(sum) / width;
        float squares = 0.f;
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            n[e] = (threadIdx.x + e / 4 * blockDim.x) * 4 < width ? n[e] - mean : 0.f;
            squares += n[e] * n[e];
        }
        const float scale = rsqrtf(sum_of_block(squares) / width + eps);
        float along = 0.f, across = 0.f;
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            n[e] *= scale;
            of_weight[e] += g[e] * n[e];
            of_bias[e] += g[e];
            g[e] *= w[e];
            along += g[e] * n[e];
            across += g[e];
        }
        along = sum_of_block(along) / width;
        across = sum_of_block(across) / width;
#pragma unroll
        for (int f = 0; f < FOURS; ++f) {
            const int i = (threadIdx.x + f * blockDim.x) * 4;
            if (i >= width) continue;
            float4 d = four_of(base + from + i);
            d.x += scale * (g[4 * f] - across - n[4 * f] * along);
            d.y += scale * (g[4 * f + 1] - across - n[4 * f + 1] * along);
            d.z += scale * (g[4 * f + 2] - across - n[4 * f + 2] * along);
            d.w += scale * (g[4 * f + 3] - across - n[4 * f + 3] * along);
            put_four(dx + from + i, d);
        }
    }
    sums += static_cast<long>(blockIdx.x) * 2 * width;
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
        const int i = (threadIdx.x + e / 4 * blockDim.x) * 4 + e % 4;
        if (i < width) sums[i] = of_weight[e], sums[width + i] = of_bias[e];
    }
}

// Eight adjacent numbers.
union Eight {
    uint4 all;
    __nv_bfloat162 pairs[4];
};

__device__ inline void eight_of(float (&to)[8], const bf16 *from) {
    const Eight eight = {*reinterpret_cast<const uint4 *>(from)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 pair = __bfloat1622float2(eight.pairs[i]);
        to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
    }
}

__device__ inline void put_eight(bf16 *to, const float (&from)[8]) {
    Eight eight;
#pragma unroll
    for (int i = 0; i < 4; ++i) eight.pairs[i] = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
    *reinterpret_cast<uint4 *>(to) = eight.all;
}

// The sum over a power of two of neighbouring lanes.
__device__ inline float sum_of_lanes(float x, int lanes) {
    for (int apart = lanes / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(~0u, x, apart);
    return x;
}

// The partner of each of a lane's eight numbers in the rotation of the first 2 half dimensions of its head, and the number by
// which it is multiplied before it is added: lane `part` of the head has eight dimensions.
struct Turn {
    const float *cos, *sin;
    int half, part;

    // Rotates, or rotates back.
    __device__ inline void apply(float (&x)[8], bool back) const {
        const bool rotated = part * 8 < 2 * half, low = part * 8 < half;
        if (half % 8 == 0) {
            const int from = (low ? part * 8 : part * 8 - half);
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                const float other = __shfl_xor_sync(~0u, x[e], half / 8);
                if (rotated) x[e] = x[e] * cos[from + e] + (low != back ? -other : other) * sin[from + e];
            }
        } else if (half == 4) {
            // Both halves lie in the first lane.
            if (part == 0)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const float a = x[e], b = x[e + 4], s = back ? -sin[e] : sin[e];
                    x[e] = a * cos[e] - b * s, x[e + 4] = b * cos[e] + a * s;
                }
        }
    }
};

// The heads of a block's queries, keys and values: bias, then for queries and keys the norm of each head and the rotation of its
// first 2 half dimensions by the token's angles. One block per token and side (blockIdx.y), eight numbers per thread, d / 8
// threads per head; half is 4, or 8 times a power of two. Row `token` goes to row rows[token] of keys and values if `rows` is not
// null, else to row first + token.
extern "C" __global__ void heads(const bf16 *q, const bf16 *k, const bf16 *v, const float *q_bias, const float *k_bias,
                                 const float *v_bias, const float *q_weight, const float *k_weight, const float *q_shift,
                                 const float *k_shift, const float *cos, const float *sin, bf16 *q_to, bf16 *k_to, bf16 *v_to,
                                 const uint32_t *rows, int first, int count, int d, int half, float eps) {
    const int token = blockIdx.x, side = blockIdx.y, width = count * d;
    const long row = side == 0 ? token : rows != nullptr ? rows[token] : first + token;
    const bf16 *from = (side == 0 ? q : side == 1 ? k : v) + static_cast<long>(token) * width;
    const float *bias = side == 0 ? q_bias : side == 1 ? k_bias : v_bias;
    bf16 *to = (side == 0 ? q_to : side == 1 ? k_to : v_to) + row * width;
    const float *weight = side == 0 ? q_weight : k_weight, *shift = side == 0 ? q_shift : k_shift;
    const long table = static_cast<long>(token) * half;
    for (int begin = 0; begin < width; begin += blockDim.x * 8) {
        // Lanes after the last head take part, because shuffles need the whole warp.
        const int at = begin + threadIdx.x * 8;
        const bool there = at < width;
        const int i = there ? at : width - 8;
        float x[8];
        eight_of(x, from + i);
        const float4 low = four_of(bias + i), high = four_of(bias + i + 4);
        x[0] += low.x, x[1] += low.y, x[2] += low.z, x[3] += low.w;
        x[4] += high.x, x[5] += high.y, x[6] += high.z, x[7] += high.w;
        if (side < 2) {
            const int part = at / 8 % (d / 8);
            float sum = 0.f, squares = 0.f;
#pragma unroll
            for (int e = 0; e < 8; ++e) sum += x[e];
            const float mean = sum_of_lanes(sum, d / 8) / d;
#pragma unroll
            for (int e = 0; e < 8; ++e) x[e] -= mean, squares += x[e] * x[e];
            const float scale = rsqrtf(sum_of_lanes(squares, d / 8) / d + eps);
#pragma unroll
            for (int e = 0; e < 8; ++e) x[e] = x[e] * scale * weight[part * 8 + e] + shift[part * 8 + e];
            Turn{cos + table, sin + table, half, part}.apply(x, false);
        }
        if (there) put_eight(to + i, x);
    }
}

// The gradients of queries or keys before their norm and rotation, written over the gradients after them; sizes as for `heads`. A
// block takes every gridDim.x-th token; sums[block] = its sums of the gradients of the norm's weight, then of its bias.
extern "C" __global__ void heads_back(const bf16 *x, const float *bias, const float *weight, const float *cos, const float *sin,
                                      bf16 *grad, float *sums, long tokens, int count, int d, int half, float eps) {
    extern __shared__ float room[];
    const int width = count * d, part = threadIdx.x % (d / 8);
    float of_weight[8] = {}, of_bias[8] = {}, w[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) w[e] = weight[part * 8 + e];
    for (long token = blockIdx.x; token < tokens; token += gridDim.x) {
        for (int begin = 0; begin < width; begin += blockDim.x * 8) {
            const int at = begin + threadIdx.x * 8;
            const bool there = at < width;
            const long from = token * width + (there ? at : width - 8);
            float n[8], g[8], sum = 0.f, squares = 0.f;
            eight_of(n, x + from);
            eight_of(g, grad + from);
            Turn{cos + token * half, sin + token * half, half, part}.apply(g, true);
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                n[e] += bias[(there ? at : width - 8) + e];
                sum += n[e];
            }
            const float mean = sum_of_lanes(sum, d / 8) / d;
#pragma unroll
            for (int e = 0; e < 8; ++e) n[e] -= mean, squares += n[e] * n[e];
            const float scale = rsqrtf(sum_of_lanes(squares, d / 8) / d + eps);
            float along = 0.f, across = 0.f;
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                n[e] *= scale;
                if (there) of_weight[e] += g[e] * n[e], of_bias[e] += g[e];
                g[e] *= w[e];
                along += g[e] * n[e];
                across += g[e];
            }
            along = sum_of_lanes(along, d / 8) / d;
            across = sum_of_lanes(across, d / 8) / d;
#pragma unroll
            for (int e = 0; e < 8; ++e) g[e] = scale * (g[e] - across - n[e] * along);
            if (there) put_eight(grad + from, g);
        }
    }
    // The sums of threads that have the same part of a head, one after the other.
    float *mine = room + threadIdx.x * 16;
#pragma unroll
    for (int e = 0; e < 8; ++e) mine[e] = of_weight[e], mine[8 + e] = of_bias[e];
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * d; i += blockDim.x) {
        const int column = i % d, which = i / d * 8 + column % 8;
        float total = 0.f;
        for (int t = column / 8; t < blockDim.x; t += d / 8) total += room[t * 16 + which];
        sums[static_cast<long>(blockIdx.x) * 2 * d + i] = total;
    }
}

// x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³))) / 2 as x / (1 + e^(-2u)).
__device__ inline float gate(float x) { return 1.f / (1.f + __expf(-x * (1.5957691216f + 0.0713548163f * x * x))); }

__device__ inline float gelu_slope(float x) {
    const float g = gate(x), along = x * (1.5957691216f + 3.f * 0.0713548163f * x * x);
    return g * (1.f + (1.f - g) * along);
}

// y = gelu(x + bias) of rows [n, width], which may be in place; eight numbers per thread, width is a multiple of eight.
extern "C" __global__ void gelu_with_bias(const bf16 *x, const float *bias, bf16 *y, long count, int width) {
    const long at = (static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (at >= count) return;
    Eight eight = {*reinterpret_cast<const uint4 *>(x + at)};
    const float *by = bias + at % width;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float2 pair = __bfloat1622float2(eight.pairs[i]);
        pair.x += by[2 * i], pair.y += by[2 * i + 1];
        eight.pairs[i] = __floats2bfloat162_rn(pair.x * gate(pair.x), pair.y * gate(pair.y));
    }
    *reinterpret_cast<uint4 *>(y + at) = eight.all;
}

// grad <- grad gelu'(x + bias).
extern "C" __global__ void gelu_back(const bf16 *x, const float *bias, bf16 *grad, long count, int width) {
    const long at = (static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (at >= count) return;
    const Eight eight = {*reinterpret_cast<const uint4 *>(x + at)};
    Eight grads = {*reinterpret_cast<const uint4 *>(grad + at)};
    const float *by = bias + at % width;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 pair = __bfloat1622float2(eight.pairs[i]), g = __bfloat1622float2(grads.pairs[i]);
        grads.pairs[i] =
            __floats2bfloat162_rn(g.x * gelu_slope(pair.x + by[2 * i]), g.y * gelu_slope(pair.y + by[2 * i + 1]));
    }
    *reinterpret_cast<uint4 *>(grad + at) = grads.all;
}

// Converts f32 to bf16, eight numbers per thread.
extern "C" __global__ void narrowed(const float *x, bf16 *y, long count) {
    const long at = (static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (at + 8 <= count) {
        const float4 low = four_of(x + at), high = four_of(x + at + 4);
        const float eight[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        put_eight(y + at, eight);
    } else {
        for (long i = at; i < count; ++i) put(y + i, x[i]);
    }
}

// The coefficients of a step of AdamW, and the step for one number.
struct Step {
    float beta1, rest1, beta2, rest2, scale, keep, rate, root, eps;

    __device__ inline void take(float &param, float grad, float &first, float &second) const {
        grad *= scale;
        first = beta1 * first + rest1 * grad;
        second = beta2 * second + rest2 * (grad * grad);
        param = param * keep - rate * first / (sqrtf(second) / root + eps);
    }
};

// A step of AdamW (see optim.rs), four numbers per thread, each read and written once.
extern "C" __global__ void adamw(float *param, const float *grad, float *first, float *second, long count, float beta1, float rest1,
                                 float beta2, float rest2, float scale, float keep, float rate, float root, float eps) {
    const Step by = {beta1, rest1, beta2, rest2, scale, keep, rate, root, eps};
    const long at = (static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    if (at + 4 <= count) {
        float4 p = four_of(param + at), m = four_of(first + at), v = four_of(second + at);
        const float4 g = four_of(grad + at);
        by.take(p.x, g.x, m.x, v.x);
        by.take(p.y, g.y, m.y, v.y);
        by.take(p.z, g.z, m.z, v.z);
        by.take(p.w, g.w, m.w, v.w);
        put_four(param + at, p);
        put_four(first + at, m);
        put_four(second + at, v);
    } else {
        for (long i = at; i < count; ++i) by.take(param[i], grad[i], first[i], second[i]);
    }
}

// Sums of squares: one result per block, over every gridDim.x-th run of numbers.
extern "C" __global__ void squares(const float *x, double *sums, long count) {
    const long step = static_cast<long>(gridDim.x) * blockDim.x;
    float sum = 0.f;
    double total = 0.0;
    int taken = 0;
    for (long i = static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        sum += x[i] * x[i];
        // Only a few numbers are added in f32.
        if (++taken == 64) total += sum, sum = 0.f, taken = 0;
    }
    total += sum;
    __shared__ double warps[32];
    for (int apart = 16; apart > 0; apart /= 2) total += __shfl_xor_sync(~0u, total, apart);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = total;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < blockDim.x / 32; ++w) total += warps[w];
        sums[blockIdx.x] = total;
    }
}
