// Packs the entries that a mask keeps into blocks (the layout stands in weight/block.rs). Three launches, none of which the
// host waits for: masks of the blocks and how many entries each tile keeps; where each tile's values start; the values.
//
// pack_masks turns a row-major bitmap into masks of 8×8 entries. A block takes 32 tiles side by side: 32 rows of 128 bytes,
// which need not begin at a whole word, so a lane puts its 32 columns together from two neighbouring words and leaves them in
// shared memory. A tile's 16 masks are then 32 words of four bytes from four rows each: a warp writes them as 128 bytes.
// Rows of 33 words keep the eight rows that a warp reads at once in different banks.
//
// pack_starts adds the counts up, in place, in one block: a count for 1024 entries is too little for more.
//
// pack_values has a warp for a tile and eight tiles for a block, whose values follow each other without gaps. A lane takes
// 16 bytes of a row: all or half of a row of one mask. Where its entries go is known from the mask alone: behind those of the
// masks before, and of the bits below. They are put there in shared memory, from where the block writes whole vectors. That
// scatter meets banks as the mask has it (about three lanes a bank at half density); the tile's 3 KiB take longer. What no
// bit of a lane keeps is not read.
//
// Bytes for n entries of e bytes, k of them kept: n/8 for the mask, n/8 twice for the masks of the blocks, n·e for the entries,
// k·e for the values, and 20 for each tile of 1024. Registers allow 1,536 and more threads an SM; shared memory is 16 KiB (32
// in f32) a block, six (three) to 100 KiB.

#include "cuda/scan.cuh"

using u16 = unsigned short;
using u64 = unsigned long long;

constexpr int TILE = 32;         // rows and columns of a tile
constexpr int BLOCK = 8;         // of a block
constexpr int SIDE = TILE / BLOCK;
constexpr int MASKS = SIDE * SIDE; // of a tile
constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int SCAN_THREADS = 1024;

// The tiles of a matrix: `wide` beside each other, `tiles` in all.
struct Grid {
    u64 rows, cols;
    unsigned wide, tiles;
};

// `mask` are u32 words of a flat bitmap over row-major entries; `bits` are 32 such words a tile. Blocks: 32 tiles of a row of
// them each, row after row.
extern "C" __global__ __launch_bounds__(THREADS) void pack_masks(const unsigned* __restrict__ mask, Grid grid,
                                                                 unsigned* __restrict__ bits,
                                                                 unsigned* __restrict__ counts) {
    __shared__ unsigned window[TILE][TILE + 1];
    __shared__ unsigned ones[TILE];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned strips = (grid.wide + TILE - 1) / TILE;
    const unsigned high = blockIdx.x / strips, first = blockIdx.x % strips * TILE;
    const u64 begin = u64(first) * TILE, end = min(begin + TILE * TILE, grid.cols);
#pragma unroll
    for (int r = warp; r < TILE; r += WARPS) {
        const u64 row = u64(high) * TILE + r;
        unsigned columns = 0;
        if (row < grid.rows) {
            const u64 bit = row * grid.cols + begin, last = (row * grid.cols + end - 1) / 32;
            const u64 word = bit / 32 + lane;
            const int shift = bit % 32;
            const unsigned own = word <= last ? mask[word] : 0;
            unsigned next = __shfl_down_sync(0xffffffff, own, 1);
            if (lane == 31) next = shift > 0 && word + 1 <= last ? mask[word + 1] : 0;
            columns = __funnelshift_r(own, next, shift);
            // What follows the row's end is the next row's.
            const u64 col = begin + lane * TILE;
            const int width = col < end ? min(u64(TILE), end - col) : 0;
            if (width < TILE) columns &= (1u << width) - 1;
        }
        window[r][lane] = columns;
    }
    __syncthreads();
    // Word 2·b + h of a tile: rows 4·h … 4·h + 3 of block b.
    const int top = lane / 2 / SIDE * BLOCK + lane % 2 * 4, shift = lane / 2 % SIDE * BLOCK;
#pragma unroll
    for (int i = 0; i < TILE / WARPS; ++i) {
        const int tile = warp * (TILE / WARPS) + i;
        unsigned word = 0;
#pragma unroll
        for (int r = 0; r < 4; ++r) word |= (window[top + r][tile] >> shift & 0xff) << (8 * r);
        unsigned sum = __popc(word);
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffff, sum, distance);
        if (lane == 0) ones[tile] = sum;
        if (first + tile < grid.wide) bits[(u64(high) * grid.wide + first + tile) * 2 * MASKS + lane] = word;
    }
    __syncthreads();
    if (warp == 0 && first + lane < grid.wide) counts[u64(high) * grid.wide + first + lane] = ones[lane];
}

// Turns the counts of `tiles` tiles into where each one's values start; behind them, and at `total`, stands their sum.
extern "C" __global__ __launch_bounds__(SCAN_THREADS) void pack_starts(unsigned* starts, unsigned tiles, unsigned* total) {
    __shared__ unsigned sums[32];
    unsigned before = 0, all;
    for (u64 base = 0; base < tiles; base += 4 * SCAN_THREADS) {
        const u64 i = base + 4 * threadIdx.x;
        uint4 counts = make_uint4(0, 0, 0, 0);
        if (i + 4 <= tiles) {
            counts = *reinterpret_cast<const uint4*>(starts + i);
        } else {
            if (i < tiles) counts.x = starts[i];
            if (i + 1 < tiles) counts.y = starts[i + 1];
            if (i + 2 < tiles) counts.z = starts[i + 2];
        }
        uint4 at;
        at.x = before + block_scan(counts.x + counts.y + counts.z + counts.w, all, sums);
        at.y = at.x + counts.x, at.z = at.y + counts.y, at.w = at.z + counts.z;
        before += all;
        if (i + 4 <= tiles) {
            *reinterpret_cast<uint4*>(starts + i) = at;
        } else {
            if (i < tiles) starts[i] = at.x;
            if (i + 1 < tiles) starts[i + 1] = at.y;
            if (i + 2 < tiles) starts[i + 2] = at.z;
        }
    }
    if (threadIdx.x == 0) starts[tiles] = before, *total = before;
}

// `out` has room for `kept` values; a mask that keeps more is found out by the host, and what has no room is not written.
template <class T>
__device__ void values(const T* source, Grid grid, const u64* bits, const unsigned* starts, unsigned kept, T* out) {
    constexpr int COUNT = 16 / sizeof(T);   // entries of a lane
    constexpr int PARTS = TILE / COUNT;     // lanes of a row
    constexpr int PASSES = BLOCK / COUNT;   // over a row of blocks
    __shared__ __align__(16) T staged[WARPS * TILE * TILE + COUNT];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned first = blockIdx.x * WARPS, tile = first + warp, last = min(first + WARPS, grid.tiles);
    const unsigned start = first + lane <= last ? starts[first + lane] : 0;
    const unsigned begin = __shfl_sync(0xffffffff, start, 0);
    const unsigned end = min(__shfl_sync(0xffffffff, start, last - first), kept);
    const unsigned own = __shfl_sync(0xffffffff, start, warp);
    // In shared memory a value lies as far from a vector's beginning as in `out`.
    const unsigned head = begin % COUNT;
    if (tile < last) {
        const u64 word = lane < MASKS ? bits[u64(tile) * MASKS + lane] : 0;
        const int ones = __popcll(word);
        const int ahead = warp_scan(ones) - ones;
        const u64 top = u64(tile / grid.wide) * TILE, left = u64(tile % grid.wide) * TILE;
        const int part = lane % PARTS, col = part * COUNT;
        const bool whole = grid.cols % COUNT == 0;
        union Vector {
            uint4 words;
            T entries[COUNT];
        } vectors[SIDE * PASSES];
        unsigned keep[SIDE * PASSES];
        int place[SIDE * PASSES];
#pragma unroll
        for (int i = 0; i < SIDE * PASSES; ++i) {
            const int row = i % PASSES * COUNT + lane / PARTS, band = i / PASSES;
            const int block = band * SIDE + col / BLOCK, shift = row * BLOCK + col % BLOCK;
            const u64 mask = __shfl_sync(0xffffffff, word, block);
            place[i] = __shfl_sync(0xffffffff, ahead, block) + __popcll(mask & ((u64(1) << shift) - 1));
            keep[i] = unsigned(mask >> shift) & ((1u << COUNT) - 1);
            const u64 at = (top + band * BLOCK + row) * grid.cols + left + col;
            // What is not kept is moved with what is.
            vectors[i].words = make_uint4(0, 0, 0, 0);
            if (whole) {
                if (keep[i]) vectors[i].words = *reinterpret_cast<const uint4*>(source + at);
            } else {
#pragma unroll
                for (int j = 0; j < COUNT; ++j) {
                    if (keep[i] >> j & 1) vectors[i].entries[j] = source[at + j];
                }
            }
        }
        T* to = staged + head + (own - begin);
#pragma unroll
        for (int i = 0; i < SIDE * PASSES; ++i) {
#pragma unroll
            for (int j = 0; j < COUNT; ++j) {
                if (keep[i] >> j & 1) to[place[i]++] = vectors[i].entries[j];
            }
        }
    }
    __syncthreads();
    for (unsigned v = begin / COUNT + threadIdx.x; v * u64(COUNT) < end; v += THREADS) {
        const unsigned at = v * COUNT;
        const T* from = staged + (at + head - begin);
        if (at >= begin && u64(at) + COUNT <= end) {
            *reinterpret_cast<uint4*>(out + at) = *reinterpret_cast<const uint4*>(from);
        } else {
#pragma unroll
            for (int j = 0; j < COUNT; ++j) {
                if (u64(at) + j >= begin && u64(at) + j < end) out[at + j] = from[j];
            }
        }
    }
}

#define VALUES(NAME, T)                                                                                                  \
    extern "C" __global__ __launch_bounds__(THREADS) void pack_values_##NAME(                                            \
        const T* __restrict__ source, Grid grid, const u64* __restrict__ bits, const unsigned* __restrict__ starts,      \
        unsigned kept, T* __restrict__ out) {                                                                            \
        values(source, grid, bits, starts, kept, out);                                                                   \
    }

VALUES(16, u16)
VALUES(32, unsigned)
