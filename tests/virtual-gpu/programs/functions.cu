// Functions that are not inlined, structures by value, pointers to functions, tables of jumps, arrays in local memory,
// constant memory, printf.

struct Pair {
    double x;
    int y;
    char tag[5];
};

__device__ __noinline__ Pair combine(Pair a, Pair b, float scale) {
    Pair r;
    r.x = a.x * scale + b.x;
    r.y = a.y - b.y;
    for (int i = 0; i < 5; i++) r.tag[i] = a.tag[i] ^ b.tag[4 - i];
    return r;
}

__device__ __noinline__ int twice(int x) { return 2 * x; }
__device__ __noinline__ int square(int x) { return x * x; }
__device__ __noinline__ int negate(int x) { return -x; }

typedef int (*Function)(int);
__device__ Function table[3] = {twice, square, negate};
__constant__ int weights[8] = {1, -2, 3, -4, 5, -6, 7, -8};

extern "C" __global__ void structures(const Pair* in, Pair* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = combine(in[i], in[n - 1 - i], 0.5f);
}

extern "C" __global__ void pointers(int* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = table[i % 3](x[i]) + weights[i % 8];
}

extern "C" __global__ void jumps(const int* op, int* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int v = x[i];
    switch (op[i]) {
        case 0: v += 10; break;
        case 1: v -= 20; break;
        case 2: v *= 30; break;
        case 3: v /= 7; break;
        case 4: v %= 11; break;
        case 5: v ^= 0x55; break;
        case 6: v = v << 3; break;
        case 7: v = v >> 2; break;
        case 8: v = ~v; break;
        default: v = 0;
    }
    x[i] = v;
}

// An insertion sort of sixteen numbers in an array that needs addresses.
extern "C" __global__ void local_sort(short* x) {
    short a[16];
    int base = (blockIdx.x * blockDim.x + threadIdx.x) * 16;
    for (int i = 0; i < 16; i++) {
        short v = x[base + i];
        int j = i;
        while (j > 0 && a[j - 1] > v) {
            a[j] = a[j - 1];
            j--;
        }
        a[j] = v;
    }
    for (int i = 0; i < 16; i++) x[base + i] = a[i];
}

extern "C" __global__ void hello(int n) {
    if (threadIdx.x < n)
        printf("thread %d of %u: %5.2f %s %c %x %lld %%\n", threadIdx.x, blockDim.x, threadIdx.x * 0.25, "text", 'a' + threadIdx.x,
               255u << threadIdx.x, -1234567890123LL * threadIdx.x);
}

extern "C" __global__ void checked(const int* x, int limit) {
    int v = x[threadIdx.x];
    if (v >= limit) {
        printf("x[%d] = %d\n", threadIdx.x, v);
        __trap();
    }
}
