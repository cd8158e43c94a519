// Memory orders between blocks: messages by release and acquire, locks, fences, the last block that finishes a sum, a
// table that blocks fill in a wave, counters that a warp raises together.

__device__ unsigned load_acquire(const unsigned* at) {
    unsigned v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
    return v;
}

__device__ void store_release(unsigned* at, unsigned v) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(v) : "memory");
}

// Block 0 sends every number through a ring of eight places; block 1 squares what it receives.
extern "C" __global__ void ring(const int* x, int* out, int n, int* places, unsigned* sent, unsigned* received) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        int round = i / blockDim.x, slot = (round % 8) * blockDim.x + threadIdx.x;
        if (blockIdx.x == 0) {
            while (load_acquire(&received[threadIdx.x]) + 8 <= (unsigned)round) {
            }
            places[slot] = x[i];
            store_release(&sent[threadIdx.x], round + 1);
        } else {
            while (load_acquire(&sent[threadIdx.x]) <= (unsigned)round) {
            }
            out[i] = places[slot] * places[slot];
            store_release(&received[threadIdx.x], round + 1);
        }
    }
}

struct Ticket {
    unsigned next, serving;
};

// A lock that serves in order, one thread of each warp at a time. What it guards is not atomic.
extern "C" __global__ void locked(Ticket* lock, double* state, int rounds) {
    if (threadIdx.x % 32 != 0) return;
    for (int r = 0; r < rounds; r++) {
        unsigned mine = atomicAdd(&lock->next, 1);
        while (*(volatile unsigned*)&lock->serving != mine) __nanosleep(20);
        __threadfence();
        volatile double* s = state;
        s[0] = s[0] + 1;
        s[1] = s[1] + s[0];
        __threadfence();
        *(volatile unsigned*)&lock->serving = mine + 1;
    }
}

// The classic: each block sums a part, and whichever finishes last sums the parts.
extern "C" __global__ void last_block(const float* x, int n, float* parts, unsigned* finished, float* sum) {
    __shared__ float s[128];
    __shared__ bool last;
    auto fold = [&] {
        for (int d = 64; d > 0; d /= 2) {
            __syncthreads();
            if (threadIdx.x < d) s[threadIdx.x] += s[threadIdx.x + d];
        }
    };
    s[threadIdx.x] = 0;
    for (int i = blockIdx.x * 128 + threadIdx.x; i < n; i += gridDim.x * 128) s[threadIdx.x] += x[i];
    fold();
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = s[0];
        __threadfence();
        last = atomicInc(finished, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    s[threadIdx.x] = threadIdx.x < gridDim.x ? ((volatile float*)parts)[threadIdx.x] : 0;
    fold();
    if (threadIdx.x == 0) *sum = s[0];
}

// Two threads each raise a flag and look at the other's: with a fence between, one of them sees it.
extern "C" __global__ void both_look(int* flags, int* seen, int rounds) {
    if (threadIdx.x != 0) return;
    volatile int* f = flags;
    for (int r = 0; r < rounds; r++) {
        f[2 * r + blockIdx.x] = 1;
        asm volatile("fence.sc.gpu;" ::: "memory");
        seen[2 * r + blockIdx.x] = f[2 * r + 1 - blockIdx.x];
    }
}

// Edit distance of two words: each block owns a strip of columns and follows the strip to its left, row by row.
extern "C" __global__ void edit_distance(const char* a, int rows, const char* b, int cols, int* table, unsigned* progress) {
    int first = blockIdx.x * 32 + 1, last = min(first + 32, cols + 1);
    if (threadIdx.x != 0) return;
    for (int r = 1; r <= rows; r++) {
        if (blockIdx.x > 0)
            while (load_acquire(&progress[blockIdx.x - 1]) < (unsigned)r) {
            }
        for (int c = first; c < last; c++) {
            int change = table[(r - 1) * (cols + 1) + c - 1] + (a[r - 1] != b[c - 1]);
            int drop = min(table[(r - 1) * (cols + 1) + c], table[r * (cols + 1) + c - 1]) + 1;
            table[r * (cols + 1) + c] = min(change, drop);
        }
        store_release(&progress[blockIdx.x], r);
    }
}

// Every thread takes a place of its own in the list of its key: a warp's equal keys take theirs together.
extern "C" __global__ void places_by_key(const unsigned* key, int n, unsigned* counts, unsigned* place) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned here = __ballot_sync(0xffffffffu, i < n);
    if (i >= n) return;
    unsigned mates = __match_any_sync(here, key[i]);
    int lane = threadIdx.x % 32, leader = __ffs(mates) - 1;
    unsigned base = 0;
    if (lane == leader) base = atomicAdd(&counts[key[i]], __popc(mates));
    base = __shfl_sync(mates, base, leader);
    place[i] = base + __popc(mates & ((1u << lane) - 1));
}
