// Rows of logits: log-probabilities of targets, likeliest columns, draws.
#pragma once

#include "numbers.cuh"

// Log-probabilities of targets under rows of logits [n, columns]: to[row] = log softmax(logits)[target], log_sums[row] = the
// log-sum-exp. One block per row, which it reads once.
extern "C" __global__ void log_prob(const float *logits, const uint32_t *targets, float *to, float *log_sums, int columns) {
    logits += static_cast<long>(blockIdx.x) * columns;
    float largest = -INFINITY, sum = 0.f;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) {
        const float x = logits[i];
        if (x > largest) sum *= __expf(largest - x), largest = x;
        sum += __expf(x - largest);
    }
    __shared__ float all[32];
    float most = largest;
    for (int apart = 16; apart > 0; apart /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, apart));
    if (threadIdx.x % 32 == 0) all[threadIdx.x / 32] = most;
    __syncthreads();
    for (int w = 0; w < blockDim.x / 32; ++w) most = fmaxf(most, all[w]);
    sum = sum_of_block(largest == -INFINITY ? 0.f : sum * __expf(largest - most));
    if (threadIdx.x == 0) {
        const float log_sum = most + logf(sum);
        log_sums[blockIdx.x] = log_sum;
        to[blockIdx.x] = logits[targets[blockIdx.x]] - log_sum;
    }
}

// The gradients of those logits, (onehot - softmax) grad, as bf16. blockIdx.y is the row.
extern "C" __global__ void log_prob_back(const float *logits, const uint32_t *targets, const float *log_sums, const float *grad,
                                         bf16 *to, int columns) {
    const long from = static_cast<long>(blockIdx.y) * columns;
    const float log_sum = log_sums[blockIdx.y], g = grad[blockIdx.y];
    const int i = (blockIdx.x * blockDim.x + threadIdx.x) * 2, target = targets[blockIdx.y];
    for (int e = i; e < min(i + 2, columns); ++e) {
        const float share = __expf(logits[from + e] - log_sum);
        put(to + from + e, ((e == target ? 1.f : 0.f) - share) * g);
    }
}

// The `few` columns with the largest logits of each row in f32 (of equal logits the lower column), their logits, and the row's
// log-sum-exp: one block per row. to[row] = few columns, then few logits, then the log-sum-exp.
extern "C" __global__ void likeliest(const float *logits, float *to, int columns, int few) {
    __shared__ float best[32];
    __shared__ int where[32];
    __shared__ float taken_value;
    __shared__ int taken_at;
    logits += static_cast<long>(blockIdx.x) * columns, to += static_cast<long>(blockIdx.x) * (2 * few + 1);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    float last = INFINITY, first = 0.f;
    int last_at = -1;
    for (int place = 0; place < few; ++place) {
        // The best of the columns after the last one found.
        float value = -INFINITY;
        int at = columns;
        for (int i = threadIdx.x; i < columns; i += blockDim.x) {
            const float x = logits[i];
            const bool behind = x < last || (x == last && i > last_at);
            if (behind && (x > value || (x == value && i < at))) value = x, at = i;
        }
        for (int apart = 16; apart > 0; apart /= 2) {
            const float other = __shfl_xor_sync(~0u, value, apart);
            const int other_at = __shfl_xor_sync(~0u, at, apart);
            if (other > value || (other == value && other_at < at)) value = other, at = other_at;
        }
        if (lane == 0) best[warp] = value, where[warp] = at;
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int w = 1; w < warps; ++w)
                if (best[w] > value || (best[w] == value && where[w] < at)) value = best[w], at = where[w];
            taken_value = value, taken_at = at;
            to[place] = static_cast<float>(at), to[few + place] = value;
        }
        __syncthreads();
        last = taken_value, last_at = taken_at;
        if (place == 0) first = last;
    }
    float sum = 0.f;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += expf(logits[i] - first);
    sum = sum_of_block(sum);
    if (threadIdx.x == 0) to[2 * few] = first + logf(sum);
}

// For each row of guided logits (1 + guidance) cond - guidance uncond (or of cond, if uncond is null) the first column whose
// cumulative probability exceeds the row's mark, never one of probability 0, and its probability: to[row] = both. One block per
// row, which it holds in shared memory; each thread has a run of columns.
extern "C" __global__ void draw(const float *cond, const float *uncond, const float *marks, float *to, int columns, float guidance) {
    extern __shared__ float weights[];
    __shared__ float sums[1024], largest[32];
    __shared__ int chosen;
    const long from = static_cast<long>(blockIdx.x) * columns;
    float most = -INFINITY;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) {
        float x = cond[from + i];
        if (uncond != nullptr) x = x * (1.f + guidance) - uncond[from + i] * guidance;
        weights[i] = x;
        most = fmaxf(most, x);
    }
    for (int apart = 16; apart > 0; apart /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, apart));
    if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = most;
    if (threadIdx.x == 0) chosen = columns;
    __syncthreads();
    for (int w = 0; w < blockDim.x / 32; ++w) most = fmaxf(most, largest[w]);
    // Each run is read by one thread: an odd length keeps the threads in different banks.
    const int run = (columns + blockDim.x - 1) / blockDim.x | 1, first = min(threadIdx.x * run, columns), end = min(first + run, columns);
    float sum = 0.f;
    for (int i = first; i < end; ++i) {
        weights[i] = expf(weights[i] - most);
        sum += weights[i];
    }
    // Cumulative sums of the runs: within each warp, then over the warps.
    float up_to = sum;
    for (int apart = 1; apart < 32; apart *= 2) {
        const float other = __shfl_up_sync(~0u, up_to, apart);
        if (threadIdx.x % 32 >= apart) up_to += other;
    }
    if (threadIdx.x % 32 == 31) sums[threadIdx.x / 32] = up_to;
    __syncthreads();
    float before = 0.f, total = 0.f;
    for (int w = 0; w < blockDim.x / 32; ++w) {
        if (w < threadIdx.x / 32) before += sums[w];
        total += sums[w];
    }
    const float mark = marks[blockIdx.x] * total;
    before += up_to - sum;
    // Rounding may put the mark between two runs or after all: the column then is in the first run after it, or in the last run of
    // probability above 0.
    float passed = before;
    int found = columns, last = -1;
    for (int i = first; i < end; ++i) {
        passed += weights[i];
        if (weights[i] > 0.f) {
            last = i;
            if (found == columns && passed > mark) found = i;
        }
    }
    if (found < columns) atomicMin(&chosen, found);
    __syncthreads();
    if (chosen == columns) {
        __syncthreads();
        if (threadIdx.x == 0) chosen = -1;
        __syncthreads();
        if (last >= 0) atomicMax(&chosen, last);
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        to[2 * blockIdx.x] = static_cast<float>(chosen);
        to[2 * blockIdx.x + 1] = chosen < 0 ? NAN : weights[chosen] / total;
    }
}
