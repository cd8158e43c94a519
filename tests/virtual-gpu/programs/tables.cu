// What shares by atomics: a hash table, a lock-free stack, a queue of work, float minima and double sums by compare-and-swap.

typedef unsigned long long u64;
constexpr unsigned EMPTY = 0xffffffffu;

__device__ unsigned mix(unsigned k) {
    k ^= k >> 16;
    k *= 0x85ebca6bu;
    k ^= k >> 13;
    k *= 0xc2b2ae35u;
    return k ^ k >> 16;
}

// Inserts with linear probing; values of equal keys add up.
extern "C" __global__ void insert(unsigned* keys, unsigned* values, unsigned mask, const unsigned* k, int n, int* full) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned key = k[i], at = mix(key) & mask;
    for (unsigned tries = 0; tries <= mask; tries++, at = (at + 1) & mask) {
        unsigned was = atomicCAS(&keys[at], EMPTY, key);
        if (was == EMPTY || was == key) {
            atomicAdd(&values[at], 1u);
            return;
        }
    }
    atomicExch(full, 1);
}

extern "C" __global__ void lookup(const unsigned* keys, const unsigned* values, unsigned mask, const unsigned* k, int n,
                                  unsigned* found) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned key = k[i], at = mix(key) & mask;
    while (keys[at] != EMPTY && keys[at] != key) at = (at + 1) & mask;
    found[i] = keys[at] == key ? values[at] : 0;
}

// Pushes every index onto one of a few stacks whose heads carry a count against reuse.
extern "C" __global__ void push(u64* heads, unsigned* next, int stacks, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    u64* head = &heads[i % stacks];
    u64 old = *(volatile u64*)head, assumed;
    do {
        assumed = old;
        next[i] = (unsigned)assumed;
        __threadfence();
        old = atomicCAS(head, assumed, ((assumed >> 32) + 1) << 32 | (unsigned)(i + 1));
    } while (old != assumed);
}

__device__ void atomic_min_float(float* at, float v) {
    int old = __float_as_int(*(volatile float*)at), assumed;
    do {
        assumed = old;
        if (__int_as_float(assumed) <= v) return;
        old = atomicCAS((int*)at, assumed, __float_as_int(v));
    } while (old != assumed);
}

extern "C" __global__ void extremes(const float* x, int n, float* least, double* sum, u64* most_bits) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    atomic_min_float(least, x[i]);
    atomicAdd(sum, (double)x[i]);
    atomicMax(most_bits, (u64)(unsigned)i << 32 | __float_as_uint(fabsf(x[i])));
}

// A queue of ranges: threads take one, split it in two until it is small, and put the halves back.
extern "C" __global__ void quick_count(volatile int2* queue, int* head, volatile int* ready, int* tail, int* pending, int* leaves) {
    while (atomicAdd(pending, 0) > 0) {
        int h = atomicAdd(head, 0);
        if (h >= atomicAdd(tail, 0) || atomicCAS(head, h, h + 1) != h) continue;
        while (!ready[h]) {
        }
        __threadfence();
        int from = queue[h].x, to = queue[h].y;
        if (to - from <= 3) {
            atomicAdd(leaves, to - from);
            atomicSub(pending, 1);
            continue;
        }
        int middle = (from + to) / 2, at = atomicAdd(tail, 2);
        atomicAdd(pending, 1);
        queue[at].x = from;
        queue[at].y = middle;
        queue[at + 1].x = middle;
        queue[at + 1].y = to;
        __threadfence();
        ready[at] = 1;
        ready[at + 1] = 1;
    }
}
