// Packs the entries that a mask keeps, at most two of every four, as the lanes of `mma.sp` hold them (the layout stands in
// weight/two_four.rs).
//
// A block takes eight tiles of 32×32 entries side by side, a warp each. Their masks are rows of 32 bytes, which need not begin
// at a whole word: nine words of each row are put into shared memory, whose rows of nine words let the eight rows that a warp
// reads at once lie in different banks. A lane then takes the groups that it will hold as a lane of `mma.sp`, eight bytes
// each: four lanes a row of 32, and eight rows a request, which are whole sectors where rows are. What it keeps of its eight
// groups are the 16 bytes of each of two fragments, which it writes as they are; places of a word come from four lanes.
//
// Bytes for n entries: 2·n of entries, n/8 of the mask, n of values and n/8 of places: the least. Registers allow 1,536 and more
// threads an SM, shared memory is 1,152 bytes a block.

using u64 = unsigned long long;

constexpr int THREADS = 256, TILES = THREADS / 32; // as in cuda.rs
constexpr int SIDE = 32;                           // rows and columns of a tile
constexpr int WORDS = TILES + 1;                   // of a row's mask

// The two entries that a group stores, and where they are: those that `keep` keeps, and zeros in the first free places.
struct Stored {
    unsigned pair, places;

    __device__ Stored(uint2 entries, unsigned keep) {
        const unsigned stored = __popc(keep) >= 2 ? keep : keep == 0 ? 3 : keep == 1 ? 3 : keep | 1;
        const unsigned lower = __ffs(stored) - 1, upper = 31 - __clz(stored);
        // Entry i is bytes 2·i and the next of the eight.
        pair = __byte_perm(entries.x, entries.y, (lower * 0x22 + 0x10) | (upper * 0x22 + 0x10) << 8);
        pair &= (keep >> lower & 1 ? 0x0000ffff : 0) | (keep >> upper & 1 ? 0xffff0000 : 0);
        places = lower | upper << 2;
    }
};

extern "C" __global__ __launch_bounds__(THREADS) void pack_two_four(
    const unsigned short* __restrict__ source, const unsigned* __restrict__ mask, int rows, int cols,
    uint4* __restrict__ values, unsigned* __restrict__ places, u64* fault) {
    __shared__ unsigned window[SIDE][WORDS];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned wide = (cols + SIDE - 1) / SIDE, strips = (wide + TILES - 1) / TILES;
    const unsigned high = blockIdx.x / strips, first = blockIdx.x % strips * TILES;
    const u64 top = u64(high) * SIDE, left = u64(first) * SIDE, end = min(left + TILES * SIDE, u64(cols));
    for (unsigned i = threadIdx.x; i < SIDE * WORDS; i += THREADS) {
        const u64 row = top + i / WORDS, word = (row * cols + left) / 32 + i % WORDS;
        window[i / WORDS][i % WORDS] = row < rows && word <= (row * cols + end - 1) / 32 ? mask[word] : 0;
    }
    __syncthreads();
    const unsigned tile = first + warp;
    if (tile >= wide) return;
    const u64 index = u64(high) * wide + tile;
    const unsigned group = lane % 4;
    unsigned mine = 0;
#pragma unroll
    for (unsigned fragment = 0; fragment < 2; ++fragment) {
        unsigned pairs[4], of_half[2] = {0, 0};
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            const unsigned r = fragment * 16 + i % 2 * 8 + lane / 4;
            const u64 row = top + r, col = u64(tile) * SIDE + i / 2 * 16 + group * 4, at = row * cols + col;
            const bool there = row < rows && col < cols;
            const u64 begin = (row * cols + left) / 32;
            const unsigned keep = there ? window[r][at / 32 - begin] >> at % 32 & 15 : 0;
            uint2 entries = make_uint2(0, 0);
            if (keep) entries = *reinterpret_cast<const uint2*>(source + at);
            if (__popc(keep) > 2) atomicMax(fault, ~at);
            const Stored stored(entries, keep);
            pairs[i] = stored.pair;
            of_half[i / 2] |= stored.places << (i % 2 * 16 + group * 4);
        }
        values[(index * 2 + fragment) * 32 + lane] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
#pragma unroll
        for (unsigned half = 0; half < 2; ++half) {
            unsigned word = of_half[half];
            word |= __shfl_xor_sync(0xffffffff, word, 1);
            word |= __shfl_xor_sync(0xffffffff, word, 2);
            if (group == fragment * 2 + half) mine = word;
        }
    }
    places[index * 32 + lane] = mine;
}
