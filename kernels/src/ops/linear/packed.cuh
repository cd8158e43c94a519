// A packed weight (kernels/src/weight/block.rs) as B of a product, for Wᵀ and W alike.
//
// A panel is whole tiles of 32×32 entries: for Wᵀ those of one column of tiles, for W of one row. `cp.async` brings each
// tile's 128 bytes of masks and its values, from the 16 bytes in which they start to those in which they end; `unpack` makes
// of them the panel that `ldmatrix` reads, one step before it is multiplied.
//
// Two warps unpack a tile, eight blocks of 8×8 each, at once or in pieces between products. Lane l's place in a block is the pair of bits 2l, 2l + 1 of its mask,
// which is also the pair of entries that it writes: row l/4, columns 2·(l%4) and the next. The pair's values start after as
// many as there are ones below it: those of the words before, which a scan over the tile's 32 mask words (one a lane) has
// counted, and those below in its word, one population count. Both candidates are read, and a byte permutation that the two
// bits choose makes the word: no branch, and no loop over ones. A block's values in 16 bits are at most 128 bytes in a row,
// so that the reads of a warp never meet in a bank, however the mask looks; the words written are the eight rows of a chunk
// column.
#pragma once

#include "cuda/product.cuh"
#include "linear/type.cuh"

// A `[rows, cols]` weight in blocks; a dense one, row-major, where `bits` is null.
struct Stored {
    const uint2* bits;      // two words a block, 16 blocks a tile
    const unsigned* starts; // one a tile, and the number of values
    const void* values;
    Type type;
    int rows, cols;
};

// Two neighbours of a block from the two values that may be theirs; bit 0 and 1 of `pair` say which are kept.
__device__ inline unsigned spread(unsigned short v, unsigned short w, unsigned pair) {
    // Bytes 2 and 3 of v are zero. None: 2222, the lower: 3210, the higher: 1032, both: 5410.
    const unsigned long long choices = 0x5410'1032'3210'2222;
    unsigned both;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(both) : "r"(unsigned(v)), "r"(unsigned(w)), "r"(unsigned(choices >> pair * 16)));
    return both;
}

// A value in 16 bits in shared memory.
__device__ inline unsigned short read_shared(unsigned address) {
    unsigned short value;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(address) : "memory");
    return value;
}

// Neighbours as `spread` makes them, rounded to T where `foreign`: stored in the other type.
template <class T> __device__ unsigned pair_of(unsigned short v, unsigned short w, unsigned pair, bool foreign) {
    const unsigned both = spread(v, w, pair);
    return foreign ? from_other<T>(both) : both;
}

template <class T> __device__ unsigned pair_of(float v, float w, unsigned pair, bool) {
    return pack<T>(pair & 1 ? v : 0.0f, pair & 2 ? (pair & 1 ? w : v) : 0.0f);
}

// A stored entry and the next one, in one access.
template <class V> struct __align__(2 * sizeof(V)) Neighbours {
    V first, second;
};

// T: what is multiplied, to which entries of other types are rounded. S: the block's tiling. ALONG_K_: Wᵀ. ANY: entries may
// also be f32, and all of them stored: a dense weight is copied into the order of a tile's values, and no masks are read.
template <class T, class S, bool ALONG_K_, bool ANY> struct Packed {
    static constexpr bool PACKED = true, ALONG_K = ALONG_K_, WOVEN = !ANY && groups<S>() == 8;
    static constexpr int SIDE = 32, MASKS = 128; // entries along a tile's side, bytes of its masks
    static constexpr int TILES = S::TILE_N / SIDE, TEAM = S::THREADS / TILES;
    // Of a tile: its masks, and its values (begun anywhere in 16 bytes, and one chunk more that a pair may read but not use).
    // Beside the panel: for each warp all mask words of its tile, and where their values start. All, so that no lane is left
    // out of writing them: a branch would end what the assembler may put between products.
    static constexpr int MOST = SIDE * SIDE * (ANY ? 4 : 2), VALUES = MOST + 32, TILE = MASKS + VALUES;
    static constexpr int FOUND = 32 * 8, BESIDE = S::THREADS / 32 * FOUND;
    static constexpr int BYTES = TILES * TILE > S::B_BYTES ? TILES * TILE : S::B_BYTES;
    static_assert(SIDE == TILE_K && TEAM == 64, "a panel is whole tiles, two warps unpack one");

    Stored from;
    int first;                   // tile of this team's first row (Wᵀ) or column
    int wide;                    // tiles of a row of W
    int at, left;                // the tile that is loaded next, and how many there are from it on
    unsigned begin = 0, end = 0; // its values
    unsigned foreign;            // all bits, where values in 16 bits are of the other type than T
    unsigned skews = 0;          // for each of the last steps, four bits: how many elements its values start after a chunk

    __device__ Packed(const Stored& from, int start)
        : from(from), first(start / SIDE + int(threadIdx.x / TEAM)), wide((from.cols + SIDE - 1) / SIDE) {
        const int high = (from.rows + SIDE - 1) / SIDE;
        at = ALONG_K ? first * wide : first;
        left = first < (ALONG_K ? high : wide) ? (ALONG_K ? wide : high) : 0;
        foreign = from.type == Half<T>::TYPE ? 0 : ~0u;
        asm volatile("" : "+r"(foreign)); // opaque: a choice would be a branch
        find();
    }

    // The first panel that is loaded is `steps` further on.
    __device__ void skip(int steps) {
        at += ALONG_K ? steps : steps * wide, left -= steps;
        find();
    }

    __device__ bool dense() const { return ANY && !from.bits; }
    __device__ int element() const { return ANY && from.type == Type::F32 ? 4 : 2; }

    __device__ void find() {
        if (dense()) return;
        begin = left > 0 ? from.starts[at] : 0, end = left > 0 ? from.starts[at + 1] : 0;
    }

    // What may be read but not used is something; of a dense weight all is copied, and used.
    __device__ void clear(unsigned char* stage) const {
        if (dense()) return;
        for (unsigned at = threadIdx.x % TEAM * 16; at < MASKS + VALUES; at += TEAM * 16) {
            *reinterpret_cast<uint4*>(stage + threadIdx.x / TEAM * TILE + at) = uint4{};
        }
    }

    // Steps come in order: where the next one's values are is asked for a step before.
    __device__ void load(unsigned char* stage, int step) {
        const unsigned to = shared_address(stage) + threadIdx.x / TEAM * TILE;
        if (dense()) return load_dense(to + MASKS, step);
        const int size = element();
        const unsigned skew = begin & (16 / size - 1), nibble = unsigned(step) % 8 * 4;
        skews = skews & ~(15u << nibble) | skew << nibble;
        const unsigned byte = threadIdx.x % TEAM * 16;
        if (byte < MASKS) { // read only where there is one
            copy_async(to + byte, reinterpret_cast<const unsigned char*>(from.bits) + size_t(at) * MASKS + byte, left > 0 ? 16 : 0);
        }
        const unsigned char* values = static_cast<const unsigned char*>(from.values) + size_t(begin - skew) * size + byte;
        const int bytes = (end - begin + skew) * size - byte;
#pragma unroll
        for (int done = 0; done < MOST + 16; done += TEAM * 16) {
            if (bytes > done) copy_async(to + MASKS + byte + done, values + done, min(16, bytes - done));
        }
        at += ALONG_K ? 1 : wide, left -= 1;
        find();
    }

    // The tile has its 16 blocks one after the other, and a block its rows, of one chunk or, in f32, two: neighbouring threads
    // write neighbouring chunks, and a warp reads 64 bytes of each of eight rows.
    __device__ void load_dense(unsigned to, int step) const {
        const unsigned size = element(), two = size / 4; // whether there are two
        const int row = (ALONG_K ? first : step) * SIDE, col = (ALONG_K ? step : first) * SIDE;
        for (unsigned at = threadIdx.x % TEAM; at < SIDE * SIDE / CHUNK << two; at += TEAM) {
            const unsigned chunk = at & ((CHUNK << two) - 1), block = at / CHUNK >> two; // of the block
            const unsigned r = block / 4 * CHUNK + (chunk >> two), c = block % 4 * CHUNK + (chunk & two) * 4;
            const bool there = row + int(r) < from.rows && col + int(c) < from.cols;
            const size_t entry = there ? size_t(row + r) * from.cols + col + c : 0;
            copy_async(to + at * 16, static_cast<const unsigned char*>(from.values) + entry * size, there ? 16 : 0);
        }
    }

    __device__ void unpack(unsigned char* stage, unsigned char* spare, int step) const {
        if (ANY && from.type == Type::F32) {
            unpack_as<float>(stage, spare, step);
        } else {
            unpack_as<unsigned short>(stage, spare, step);
        }
    }

    template <class V> __device__ void unpack_as(unsigned char* stage, unsigned char* spare, int step) const {
        const bool foreign = from.type != Half<T>::TYPE;
        unpack_blocks<V>(stage, spare, step,
                         [=](int, V v, V w, unsigned pair) { return pair_of<T>(v, w, pair, foreign); });
    }

    // Where the lane's pair of each of the warp's eight blocks goes: 0 to 3 are beside each other, 4 to 7 below them. A block's
    // place among the four only changes bits of the chunk's number that are zero in the first one's: rows are whole lines, and
    // tiles begin at every fourth chunk.
    __device__ static void put(unsigned char* spare, int i, unsigned out) {
        const unsigned lane = threadIdx.x % 32, team = threadIdx.x / TEAM, half = threadIdx.x / 32 % 2;
        const unsigned row = half * 16 + lane / 4, chunk = ALONG_K ? 0 : team * (SIDE / CHUNK);
        const unsigned start = ALONG_K ? place<TILE_K / CHUNK>(team * SIDE + row, chunk) : place<S::TILE_N / CHUNK>(row, chunk);
        constexpr int DOWN = 8 * (ALONG_K ? TILE_K : S::TILE_N) * 2; // eight rows further, which are permuted alike
        unsigned char* to = spare + (start + lane % 4 * 4 ^ unsigned(i % 4) * 16) + i / 4 * DOWN;
        *reinterpret_cast<unsigned*>(to) = out;
    }

    // Ones of the mask words of lanes below, added up in five turns, of which these are FIRST to LAST − 1.
    template <int FIRST, int LAST> __device__ static void add_below(unsigned& count) {
#pragma unroll
        for (unsigned distance = 1 << FIRST; distance < 1 << LAST; distance *= 2) {
            const unsigned lower = __shfl_up_sync(0xffffffff, count, distance);
            if (threadIdx.x % 32 >= distance) count += lower;
        }
    }

    // What the warp notes of its tile's words.
    __device__ static uint2* notes(unsigned char* spare) {
        return reinterpret_cast<uint2*>(spare + S::B_BYTES + threadIdx.x / 32 * FOUND);
    }

    // Of them, of the word that has the lane's pair of the warp's i-th block.
    __device__ static uint2 note(unsigned char* spare, int i) {
        return notes(spare)[threadIdx.x / 32 % 2 * 16 + i * 2 + threadIdx.x % 32 / 16];
    }

    __device__ unsigned skew(int step) const { return skews >> unsigned(step) % 8 * 4 & 15; }

    // False, which no compiler knows, nor from that of a smaller piece.
    __device__ bool never(int piece) const { return from.cols < piece - 8; }

    // What a lane keeps between the pieces of unpacking a panel.
    struct Unpacking {
        unsigned word, before;
        uint2 notes[8];
        unsigned short first[8], second[8];
    };

    // Piece 0 to 7, in this order: each waits for what the one before has asked shared memory for.
    __device__ void unpack_piece(Unpacking& state, int piece, unsigned char* stage, unsigned char* spare, int step) const {
        static_assert(!ANY, "values of 16 bits");
        const unsigned lane = threadIdx.x % 32, shift = lane % 16 * 2;
        const unsigned char* tile = stage + threadIdx.x / TEAM * TILE;
        if (piece == 0) {
            state.word = reinterpret_cast<const unsigned*>(tile)[lane];
        } else if (piece == 1) {
            state.before = __popc(state.word);
            add_below<0, 2>(state.before);
        } else if (piece == 2) {
            add_below<2, 4>(state.before);
        } else if (piece == 3) {
            add_below<4, 5>(state.before);
            const unsigned before = state.before + skew(step) - __popc(state.word);
            notes(spare)[lane] = make_uint2(state.word, shared_address(tile) + MASKS + before * 2);
            __syncwarp();
#pragma unroll
            for (int i = 0; i < 8; ++i) state.notes[i] = note(spare, i);
        } else if (piece == 4) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const unsigned values = state.notes[i].y + __popc(state.notes[i].x & (1u << shift) - 1) * 2;
                state.first[i] = read_shared(values), state.second[i] = read_shared(values + 2);
            }
        } else {
#pragma unroll
            for (int i = (piece - 5) * 3; i < min((piece - 4) * 3, 8); ++i) {
                const unsigned pair = state.notes[i].x >> shift & 3, both = spread(state.first[i], state.second[i], pair);
                put(spare, i, both ^ (both ^ from_other<T>(both)) & foreign);
            }
        }
    }

    // make(i, v, w, pair) gives the warp's i-th block's pair of entries: v and w are the values that may be theirs, bits 0 and
    // 1 of `pair` say which are stored.
    template <class V, class Make>
    __device__ void unpack_blocks(unsigned char* stage, unsigned char* spare, int step, Make make) const {
        const unsigned lane = threadIdx.x % 32, half = threadIdx.x / 32 % 2;
        unsigned char* tile = stage + threadIdx.x / TEAM * TILE;
        if (dense()) {
            // The lane's pair of a block is where it is in the mask, and is read at once: two reads of f32 would meet in banks.
            const Neighbours<V>* pairs = reinterpret_cast<const Neighbours<V>*>(tile + MASKS) + half * 8 * 32 + lane;
            Neighbours<V> both[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) both[i] = pairs[i * 32];
#pragma unroll
            for (int i = 0; i < 8; ++i) put(spare, i, make(i, both[i].first, both[i].second, 3));
            return;
        }
        // Each lane a mask word: the bytes of values before it in the tile. A warp keeps its own eight blocks' words.
        const unsigned word = reinterpret_cast<const unsigned*>(tile)[lane];
        unsigned before = __popc(word);
        add_below<0, 5>(before);
        before += skew(step) - __popc(word);
        notes(spare)[lane] = make_uint2(word, before * sizeof(V));
        __syncwarp();

        const unsigned shift = lane % 16 * 2;
        const unsigned below = (1u << shift) - 1;
        // All reads before the first write, for the compiler keeps their order: their latencies are then one.
        unsigned pairs[8];
        const V* values[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const uint2 mine = note(spare, i);
            values[i] = reinterpret_cast<const V*>(tile + MASKS + mine.y) + __popc(mine.x & below);
            pairs[i] = mine.x >> shift & 3;
        }
        V v[8], w[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = values[i][0], w[i] = values[i][1];
#pragma unroll
        for (int i = 0; i < 8; ++i) put(spare, i, make(i, v[i], w[i], pairs[i]));
    }

    __device__ const unsigned char* panel(const unsigned char*, const unsigned char* spare, int) const { return spare; }
};
