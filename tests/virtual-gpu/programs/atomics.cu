// Atomics of every kind that CUDA C++ has, on global and shared memory.

#include <cuda_fp16.h>

extern "C" __global__ void integers(unsigned* u, int* s, unsigned long long* l) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&u[0], i);
    atomicSub(&u[1], i);
    atomicMax(&u[2], (unsigned)(i * 7919) % 1000003u);
    atomicMin(&u[3], (unsigned)(i * 7919) % 1000003u);
    atomicInc(&u[4], 99);
    atomicDec(&u[5], 99);
    atomicAnd(&u[6], ~(1u << (i % 31)));
    atomicOr(&u[7], 1u << (i % 29));
    atomicXor(&u[8], (unsigned)i);
    atomicAdd(&s[0], -i);
    atomicMax(&s[1], 500 - i);
    atomicMin(&s[2], 500 - i);
    atomicAdd(&l[0], 1ull << (i % 40));
    atomicMax(&l[1], (unsigned long long)i << 33);
    atomicXor(&l[2], (unsigned long long)i * i);
}

// Multiplication has no atomic: compare and swap until nobody came between.
extern "C" __global__ void products(unsigned* p, double* d) {
    unsigned old = *(volatile unsigned*)p, seen;
    do {
        seen = old;
        old = atomicCAS(p, seen, seen * (2 * threadIdx.x + 1));
    } while (old != seen);
    unsigned long long* bits = (unsigned long long*)d;
    unsigned long long was = *(volatile unsigned long long*)bits, expected;
    do {
        expected = was;
        was = atomicCAS(bits, expected, __double_as_longlong(fmax(__longlong_as_double(expected), (double)threadIdx.x * 0.5)));
    } while (was != expected);
}

extern "C" __global__ void floats(float* f, double* d, __half2* h) {
    __shared__ float shared[4];
    if (threadIdx.x < 4) shared[threadIdx.x] = 0.0f;
    __syncthreads();
    atomicAdd(&shared[threadIdx.x % 4], 0.5f);
    atomicAdd(d, 0.125);
    atomicAdd(h, __floats2half2_rn(1.0f, 2.0f));
    __syncthreads();
    if (threadIdx.x < 4) atomicAdd(&f[threadIdx.x], shared[threadIdx.x]);
}

// Every thread takes a slot of a list; the list holds each thread once.
extern "C" __global__ void compact(const int* x, int* out, int* count, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    bool keep = i < n && x[i] % 3 == 0;
    unsigned votes = __ballot_sync(0xffffffffu, keep);
    int lane = threadIdx.x & 31, leader = __ffs(votes) - 1, base = 0;
    if (votes && lane == leader) base = atomicAdd(count, __popc(votes));
    base = __shfl_sync(0xffffffffu, base, votes ? leader : 0);
    if (keep) out[base + __popc(votes & ((1u << lane) - 1))] = x[i];
}
