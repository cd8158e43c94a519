// Cooperative groups: tiles of a warp, coalesced and labelled groups, reductions and scans, a barrier across the grid.

#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>

namespace cg = cooperative_groups;

// Softmax of each row, a tile of 16 threads a row.
extern "C" __global__ void softmax(const float* x, float* out, int rows, int cols) {
    auto block = cg::this_thread_block();
    auto tile = cg::tiled_partition<16>(block);
    int row = blockIdx.x * (blockDim.x / 16) + tile.meta_group_rank();
    if (row >= rows) return;
    float most = -3.4e38f;
    for (int c = tile.thread_rank(); c < cols; c += 16) most = fmaxf(most, x[row * cols + c]);
    most = cg::reduce(tile, most, cg::greater<float>());
    float sum = 0;
    for (int c = tile.thread_rank(); c < cols; c += 16) sum += __expf(x[row * cols + c] - most);
    sum = cg::reduce(tile, sum, cg::plus<float>());
    for (int c = tile.thread_rank(); c < cols; c += 16) out[row * cols + c] = __expf(x[row * cols + c] - most) / sum;
}

// A scan that starts again wherever a flag is set, by warps.
extern "C" __global__ void segmented_scan(const int* x, const unsigned char* heads, int* out) {
    auto tile = cg::tiled_partition<32>(cg::this_thread_block());
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int v = x[i];
    unsigned flags = tile.ballot(heads[i]);
    int start = 31 - __clz((flags | 1u) & (0xffffffffu >> (31 - tile.thread_rank())));
    for (int d = 1; d < 32; d *= 2) {
        int other = tile.shfl_up(v, d);
        if ((int)tile.thread_rank() - d >= start) v += other;
    }
    out[i] = v;
}

// Threads that pass a filter write close together, with one atomic a warp.
extern "C" __global__ void filter(const int* x, int n, int* out, int* count) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        if (x[i] % 3 != 0) continue;
        auto active = cg::coalesced_threads();
        int base = 0;
        if (active.thread_rank() == 0) base = atomicAdd(count, (int)active.size());
        out[active.shfl(base, 0) + active.thread_rank()] = x[i];
    }
}

// Sums by key within each warp, through groups of threads with equal keys.
extern "C" __global__ void by_key(const unsigned* key, const unsigned* value, unsigned* sums) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    auto tile = cg::tiled_partition<32>(cg::this_thread_block());
    auto mates = cg::labeled_partition(tile, key[i]);
    unsigned sum = cg::reduce(mates, value[i], cg::plus<unsigned>());
    if (mates.thread_rank() == 0) atomicAdd(&sums[key[i]], sum);
}

extern "C" __global__ void scans(const int* x, int* inclusive, int* exclusive) {
    auto tile = cg::tiled_partition<8>(cg::this_thread_block());
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    inclusive[i] = cg::inclusive_scan(tile, x[i]);
    exclusive[i] = cg::exclusive_scan(tile, x[i], cg::plus<int>());
}

// Two halves of each warp do different things, each in step with itself.
extern "C" __global__ void halves_of_a_warp(int* out) {
    auto warp = cg::tiled_partition<32>(cg::this_thread_block());
    auto side = cg::binary_partition(warp, warp.thread_rank() % 2 == 0);
    int v = threadIdx.x;
    if (warp.thread_rank() % 2 == 0) {
        for (int d = side.size() / 2; d > 0; d /= 2) v += side.shfl_down(v, d);
    } else {
        for (int d = side.size() / 2; d > 0; d /= 2) v = max(v, side.shfl_down(v, d));
    }
    if (side.thread_rank() == 0) out[warp.meta_group_rank() * 2 + (warp.thread_rank() % 2)] = v;
}

// Jacobi steps with a barrier of the whole grid between them, from the runtime's own grid group.
extern "C" __global__ void jacobi(float* a, float* b, int n, int steps) {
    auto grid = cg::this_grid();
    for (int s = 0; s < steps; s++) {
        for (int i = grid.thread_rank(); i < n; i += grid.size())
            b[i] = 0.5f * (a[i == 0 ? n - 1 : i - 1] + a[i == n - 1 ? 0 : i + 1]);
        grid.sync();
        float* t = a;
        a = b;
        b = t;
    }
}

// Groups of several warps: sums of each 64 threads, and of all.
extern "C" __global__ void wide_tiles(const int* x, int* sums, int* places) {
    auto block = cg::this_thread_block();
    auto tile = cg::tiled_partition<64>(block);
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    for (int round = 0; round < 3; round++) {
        int sum = cg::reduce(tile, x[i] + round, cg::plus<int>());
        if (tile.thread_rank() == 0) sums[3 * (i / 64) + round] = sum;
    }
    places[i] = cg::exclusive_scan(tile, x[i]);
    tile.sync();
    auto all = cg::tiled_partition<128>(block);
    int most = cg::reduce(all, x[i], cg::greater<int>());
    if (tile.any(x[i] == most)) places[i] += 1000;
}
