// A radix sort in passes of four bits, each one kernel: ranks by match and ballot, offsets by a look back over the blocks
// before, without a second launch.

constexpr int BITS = 4, DIGITS = 1 << BITS, WARPS = 4, THREADS = 32 * WARPS;
constexpr unsigned SUM = 1u << 30, PREFIX = 2u << 30, COUNT = SUM - 1;

extern "C" __global__ void histogram_all(const unsigned* keys, int n, unsigned* totals) {
    __shared__ unsigned bins[8][DIGITS];
    for (int i = threadIdx.x; i < 8 * DIGITS; i += blockDim.x) bins[i / DIGITS][i % DIGITS] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        for (int pass = 0; pass < 8; pass++) atomicAdd(&bins[pass][keys[i] >> (pass * BITS) & (DIGITS - 1)], 1u);
    __syncthreads();
    for (int i = threadIdx.x; i < 8 * DIGITS; i += blockDim.x) atomicAdd(&totals[i], bins[i / DIGITS][i % DIGITS]);
}

extern "C" __global__ __launch_bounds__(THREADS) void one_sweep(const unsigned* keys, const unsigned* values, unsigned* keys_out,
                                                               unsigned* values_out, int n, int pass, const unsigned* totals,
                                                               volatile unsigned* status, unsigned* next_block) {
    __shared__ unsigned warp_count[WARPS][DIGITS];
    __shared__ unsigned start[DIGITS];
    __shared__ unsigned block;
    if (threadIdx.x == 0) block = atomicAdd(next_block, 1u);
    for (int i = threadIdx.x; i < WARPS * DIGITS; i += THREADS) warp_count[i / DIGITS][i % DIGITS] = 0;
    __syncthreads();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i = block * THREADS + threadIdx.x;
    const bool inside = i < n;
    unsigned key = inside ? keys[i] : 0xffffffffu, digit = key >> (pass * BITS) & (DIGITS - 1);
    unsigned mates = __match_any_sync(0xffffffffu, inside ? digit : DIGITS + 0u);
    unsigned rank = __popc(mates & ((1u << lane) - 1));
    if (inside && rank == 0) warp_count[warp][digit] = __popc(mates);
    __syncthreads();
    if (threadIdx.x < DIGITS) {
        unsigned d = threadIdx.x, sum = 0;
        for (int w = 0; w < WARPS; w++) {
            unsigned c = warp_count[w][d];
            warp_count[w][d] = sum;
            sum += c;
        }
        unsigned before = 0;
        for (unsigned e = 0; e < d; e++) before += totals[pass * DIGITS + e];
        status[block * DIGITS + d] = (block == 0 ? PREFIX : SUM) | sum;
        __threadfence();
        unsigned carried = 0;
        for (int b = (int)block - 1; b >= 0;) {
            unsigned s = status[b * DIGITS + d];
            if (s & PREFIX) {
                carried += s & COUNT;
                break;
            }
            if (s & SUM) {
                carried += s & COUNT;
                b--;
            }
        }
        if (block != 0) status[block * DIGITS + d] = PREFIX | (carried + sum);
        start[d] = before + carried;
    }
    __syncthreads();
    if (inside) {
        unsigned to = start[digit] + warp_count[warp][digit] + rank;
        keys_out[to] = key;
        values_out[to] = values[i];
    }
}
