// Matrix products on tensor cores: C[m×n] = A[m×k]·B[k×n] in 16 bits with sums in f32, a tile of C for each block.
//
// `multiply` walks k in panels of 32 through a ring of stages of shared memory: while the warps multiply one panel of A and B,
// `cp.async` fills the next ones. How a panel gets there is the operand's business (`AlongK` and `AcrossK` are the dense
// ones; a packed operand copies what is packed, and unpacks it one step ahead: in pieces between the products, where it is
// WOVEN), and what becomes of the sums the caller's:
// `each_pair` hands them out in pairs, `store_rows` and `store_transposed` write them as rows of 16 bits in whole lines.
//
// A panel is stored in chunks of 16 bytes, permuted within their row (`place`): the eight rows of a matrix that `ldmatrix`
// reads in one pass lie in eight different groups of four banks, and so do the chunks that eight threads write. Rows in
// memory are whole chunks, too: multiples of 8 elements long. Any number of rows will do.
//
// What is computed from a thread's number is unsigned: a signed division by a power of two costs four instructions.
#pragma once

#include "cuda/element.cuh"
#include "cuda/matrix.cuh"

constexpr int CHUNK = 8;   // elements of 16 bytes
constexpr int TILE_K = 32; // depth of a panel

// How a block divides its tile of C among its warps, and how many panels are in shared memory.
template <int WARPS_M_, int WARPS_N_, int WARP_M_, int WARP_N_, int STAGES_> struct Tiling {
    static constexpr int WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, WARP_M = WARP_M_, WARP_N = WARP_N_, STAGES = STAGES_;
    static constexpr int THREADS = 32 * WARPS_M * WARPS_N;
    static constexpr int TILE_M = WARPS_M * WARP_M, TILE_N = WARPS_N * WARP_N;
    static constexpr int A_BYTES = TILE_M * TILE_K * 2, B_BYTES = TILE_K * TILE_N * 2;
    static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0, "fragments of A have 16 rows, those of B come in pairs of 8 columns");
};

// What a warp has of C: for each 16 rows and 8 columns four sums a thread.
template <class S> using Sums = float[S::WARP_M / 16][S::WARP_N / 8][4];

// A row-major matrix.
template <class T> struct Matrix {
    const T* data;
    int rows, cols;
};

// Where chunk `chunk` of row `row` lies in a panel of CHUNKS chunks a row, in bytes. With 4 chunks (64 bytes) two rows
// share the 32 banks, with 2 four; with 8 or more one row fills them.
template <int CHUNKS> __device__ unsigned place(unsigned row, unsigned chunk) {
    static_assert(CHUNKS == 2 || CHUNKS == 4 || CHUNKS % 8 == 0, "rows that share lines, or whole lines");
    const unsigned permuted = CHUNKS == 2 ? chunk ^ (row / 4 & 1) : CHUNKS == 4 ? chunk ^ (row / 2 & 3) : chunk ^ (row & 7);
    return (row * CHUNKS + permuted) * 16;
}

// Starts to copy the panel of ROWS rows and CHUNKS chunks from (row, col) into shared memory; zeros outside the matrix.
template <class T, int THREADS, int ROWS, int CHUNKS>
__device__ void load_panel(unsigned char* panel, const Matrix<T>& from, int row, int col) {
    constexpr int TURN = THREADS / CHUNKS; // rows
    static_assert(THREADS % CHUNKS == 0 && ROWS % TURN == 0 && TURN % 8 == 0, "rows of a thread are permuted alike");
    const unsigned r = threadIdx.x / CHUNKS, c = threadIdx.x % CHUNKS;
    const int at_row = row + int(r), at_col = col + int(c) * CHUNK;
    const int bytes = at_col < from.cols ? 16 : 0;
    const T* source = from.data + size_t(at_row) * from.cols + at_col; // read only where there are bytes to read
    const unsigned to = shared_address(panel) + place<CHUNKS>(r, c);
#pragma unroll
    for (int i = 0; i < ROWS; i += TURN) {
        copy_async(to + i * CHUNKS * 16, source, at_row + i < from.rows ? bytes : 0);
        source += size_t(TURN) * from.cols;
    }
}

// An operand that is not unpacked in pieces, and keeps nothing beside its panels.
struct AtOnce {
    static constexpr bool WOVEN = false;
    static constexpr int BESIDE = 0; // bytes
    struct Unpacking {};
};

// An operand that lies in panels as it is copied: nothing is unpacked.
struct Plain : AtOnce {
    static constexpr bool PACKED = false;
    __device__ void skip(int) const {}
    __device__ void clear(unsigned char*) const {}
    __device__ void unpack(unsigned char*, unsigned char*, int) const {}
    __device__ const unsigned char* panel(const unsigned char* stage, const unsigned char*, int) const { return stage; }
};

// A row-major, or B given as its transpose: rows run along k. The panel is EXTENT rows from `first`. What depends on the thread
// is computed once: all panels have it in the same places.
template <class T, int THREADS, int EXTENT> struct AlongK : Plain {
    static constexpr bool ALONG_K = true;
    static constexpr int BYTES = EXTENT * TILE_K * 2, CHUNKS = TILE_K / CHUNK, TURN = THREADS / CHUNKS; // rows of a turn
    static_assert(THREADS % CHUNKS == 0 && EXTENT % TURN == 0 && TURN % 8 == 0, "rows of a thread are permuted alike");
    const T* source; // the thread's first chunk of the first panel; read only where it is inside
    int cols, col;   // of the matrix; the chunk's
    int rows;        // from the thread's first on
    unsigned to;

    __device__ AlongK(const Matrix<T>& from, int first) : cols(from.cols) {
        const unsigned r = threadIdx.x / CHUNKS, c = threadIdx.x % CHUNKS;
        source = from.data + size_t(first + int(r)) * from.cols + c * CHUNK;
        col = int(c) * CHUNK, rows = from.rows - first - int(r), to = place<CHUNKS>(r, c);
        // Opaque: the compiler would rather compute it again in every turn than keep it.
        asm volatile("" : "+l"(source), "+r"(to));
    }
    __device__ void load(unsigned char* stage, int step) const {
        const int bytes = col + step * TILE_K < cols ? 16 : 0;
        const T* chunk = source + step * TILE_K;
        const unsigned at = shared_address(stage) + to;
#pragma unroll
        for (int i = 0; i < EXTENT; i += TURN) {
            copy_async(at + i * CHUNKS * 16, chunk, i < rows ? bytes : 0);
            chunk += size_t(TURN) * cols;
        }
    }
};

// B row-major, or A given as its transpose: rows run across k. The panel is EXTENT columns from `first`.
template <class T, int THREADS, int EXTENT> struct AcrossK : Plain {
    static constexpr bool ALONG_K = false;
    static constexpr int BYTES = EXTENT * TILE_K * 2;
    Matrix<T> from;
    int first;

    __device__ AcrossK(const Matrix<T>& from, int first) : from(from), first(first) {}
    __device__ void load(unsigned char* stage, int step) const {
        load_panel<T, THREADS, TILE_K, EXTENT / CHUNK>(stage, from, step * TILE_K, first);
    }
};

// Where a warp reads COUNT fragments of an operand's panel, of 16 rows of A or 16 columns of B each, from `first`; what
// depends on the lane is computed once.
template <class Operand, int EXTENT, int COUNT> struct Fragments {
    static constexpr bool ALONG_K = Operand::ALONG_K;
    unsigned at[ALONG_K ? TILE_K / 16 : COUNT];

    __device__ Fragments(unsigned first, bool of_a) {
        // The lanes name the rows of four matrices. A: rows 0–7 and 8–15 for the first eight k, then for the second.
        // B: the first and the second eight k for columns 0–7, then for 8–15.
        const unsigned lane = threadIdx.x % 32;
        const bool straight = of_a == ALONG_K;
        const unsigned row = straight ? lane % 16 : lane / 16 * 8 + lane % 8, chunk = straight ? lane / 16 : lane / 8 % 2;
#pragma unroll
        for (int i = 0; i < sizeof(at) / sizeof(at[0]); ++i) {
            at[i] = ALONG_K ? place<TILE_K / CHUNK>(first + row, i * 2 + chunk)
                            : place<EXTENT / CHUNK>(row, (first + i * 16) / CHUNK + chunk);
            // Opaque: the compiler would rather compute it again in every turn than keep it.
            asm volatile("" : "+r"(at[i]));
        }
    }

    // Fragment i for k 16·half … +15.
    __device__ void read(unsigned (&part)[4], unsigned panel, int i, int half) const {
        if constexpr (ALONG_K) {
            load_matrices(part, panel + at[half] + i * 16 * TILE_K * 2);
        } else {
            load_matrices_transposed(part, panel + at[i] + half * 16 * EXTENT * 2);
        }
    }
};

// Bytes of what a packed B is unpacked to: a panel, and what unpacking keeps beside it.
template <class S, class B> __device__ constexpr int spare_bytes() { return S::B_BYTES + B::BESIDE; }

// Bytes of shared memory that `multiply` needs: the ring, and two panels of B if it is unpacked.
template <class S, class A, class B> __device__ constexpr int shared_bytes() {
    if constexpr (B::PACKED) {
        return S::STAGES * (A::BYTES + B::BYTES) + 2 * spare_bytes<S, B>();
    } else {
        return S::STAGES * (A::BYTES + B::BYTES);
    }
}

// Groups of products of a panel, and as many pieces of what is woven between them.
template <class S> __device__ constexpr int groups() { return TILE_K / 16 * (S::WARP_M / 16); }

// Called between products with 0, …, groups() − 1, in this order: unpacks B's next panel where it is woven, and else nothing.
template <class B> struct Weaver {
    const B& b;
    typename B::Unpacking& state;
    unsigned char *stage, *spare;
    int step;

    __device__ void operator()(int piece) const {
        if constexpr (B::WOVEN) {
            b.unpack_piece(state, piece, stage, spare, step);
            // Never taken: the assembler, which would put all products first, moves nothing across a branch.
            if (b.never(piece)) __trap();
        }
    }
};

// product(a, b, weave) for each of `steps` panels of A and B in shared memory, which every warp of the block multiplies.
// `shared` has `shared_bytes` and is free again when this returns.
template <class S, class A, class B, class Product>
__device__ void each_panel(A& a, B& b, int steps, unsigned char* shared, Product product) {
    static_assert(!B::PACKED || S::STAGES >= 3, "one stage to multiply, one to unpack, one to fill");
    constexpr int STAGE = A::BYTES + B::BYTES;
    const auto stage = [&](int step) { return shared + unsigned(step) % S::STAGES * STAGE; };
    const auto spare = [&](int step) {
        if constexpr (B::PACKED) {
            return shared + S::STAGES * STAGE + unsigned(step) % 2 * spare_bytes<S, B>();
        } else {
            return shared;
        }
    };
    const auto load = [&](int step) {
        if (step < steps) a.load(stage(step), step), b.load(stage(step) + A::BYTES, step);
        copies_commit();
    };

    if constexpr (B::PACKED) {
        for (int i = 0; i < S::STAGES; ++i) b.clear(stage(i) + A::BYTES);
    }
    const bool later = threadIdx.x >= S::THREADS / 2;
    // The first STAGES − 1 turns only load (and unpack the first panel): a loop of one body is compiled once.
#pragma unroll 1
    for (int step = 1 - S::STAGES; step < steps; ++step) {
        // Every thread's part of this step's stage is there, and of the next one's where it is unpacked now; no warp
        // reads the stage that is filled, or the panel that is unpacked next.
        copies_wait<S::STAGES - (B::PACKED ? 3 : 2)>();
        __syncthreads();
        load(step + S::STAGES - 1);
        // A warp has nothing else to do while tensor cores multiply. Behind the last panel of what is packed a stage is unpacked
        // that holds something else: no one reads what comes out.
        typename B::Unpacking unpacking;
        const Weaver<B> weave = {b, unpacking, stage(step + 1) + A::BYTES, spare(step + 1), step + 1};
        const auto multiply = [&] {
            if (step >= 0) product(stage(step), b.panel(stage(step) + A::BYTES, spare(step), step), weave);
        };
        if constexpr (B::PACKED && !B::WOVEN) {
            // A scheduler has a warp of either half: while one unpacks, the other has the tensor cores.
#pragma unroll 1
            for (int turn = 0; turn < 2; ++turn) {
                if ((turn == 0) == later) {
                    multiply();
                } else if (step >= -1 && step + 1 < steps) {
                    b.unpack(stage(step + 1) + A::BYTES, spare(step + 1), step + 1);
                }
            }
        } else {
            multiply();
            if (B::WOVEN && step == -1) {
#pragma unroll
                for (int piece = 0; piece < groups<S>(); ++piece) weave(piece);
            }
        }
    }
    copies_wait<0>();
    __syncthreads();
}

// sums += A·B over `steps` panels; every thread of the block takes part.
template <class T, class S, class A, class B>
__device__ void multiply(Sums<S>& sums, A& a, B& b, int steps, unsigned char* shared) {
    const unsigned warp = threadIdx.x / 32;
    const Fragments<A, S::TILE_M, S::WARP_M / 16> a_at(warp / S::WARPS_N * S::WARP_M, true);
    const Fragments<B, S::TILE_N, S::WARP_N / 16> b_at(warp % S::WARPS_N * S::WARP_N, false);
    each_panel<S>(a, b, steps, shared, [&](const unsigned char* of_a, const unsigned char* of_b, const Weaver<B>& weave) {
        const unsigned a_panel = shared_address(of_a), b_panel = shared_address(of_b);
#pragma unroll
        for (int half = 0; half < TILE_K / 16; ++half) {
            unsigned a_part[S::WARP_M / 16][4], b_part[S::WARP_N / 16][4];
#pragma unroll
            for (int i = 0; i < S::WARP_M / 16; ++i) a_at.read(a_part[i], a_panel, i, half);
#pragma unroll
            for (int j = 0; j < S::WARP_N / 16; ++j) b_at.read(b_part[j], b_panel, j, half);
#pragma unroll
            for (int i = 0; i < S::WARP_M / 16; ++i) {
#pragma unroll
                for (int j = 0; j < S::WARP_N / 8; ++j) {
                    multiply_add<T>(sums[i][j], a_part[i], b_part[j / 2][j % 2 * 2], b_part[j / 2][j % 2 * 2 + 1]);
                }
                weave(half * (S::WARP_M / 16) + i);
            }
        }
    });
}

// The panels that a depth of k takes.
__device__ inline int panels(int k) { return (k + TILE_K - 1) / TILE_K; }

// Where a block's tile of C begins.
struct Corner {
    int m, n;
};

// The tile of block `block`: bands of BAND tiles down m, walked along n, so that blocks that run together share rows and
// columns in L2.
template <class S> __device__ Corner banded(int block, int m, int n) {
    constexpr int BAND = 1024 / S::TILE_M;
    const int tiles_m = (m + S::TILE_M - 1) / S::TILE_M, tiles_n = (n + S::TILE_N - 1) / S::TILE_N;
    const int band = block / (BAND * tiles_n) * BAND, within = block % (BAND * tiles_n);
    const int height = min(BAND, tiles_m - band);
    return {(band + within % height) * S::TILE_M, within / height * S::TILE_N};
}

// Where the warp's part of the tile begins.
template <class S> __device__ Corner warp_corner(const Corner& tile) {
    const unsigned warp = threadIdx.x / 32;
    return {tile.m + int(warp / S::WARPS_N) * S::WARP_M, tile.n + int(warp % S::WARPS_N) * S::WARP_N};
}

// at(col)(row, low, high) for the sums of columns col and col + 1 in every row that the thread has, all counted from
// `warp_corner`; some may lie past the edges of C. What a pair of columns needs is loaded once, by at(col). The four threads
// of a quad have the same rows and neighbouring pairs.
template <class S, class At> __device__ void each_pair(Sums<S>& sums, At at) {
    const unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < S::WARP_N / 8; ++j) {
        auto use = at(j * 8 + lane % 4 * 2);
#pragma unroll
        for (int i = 0; i < S::WARP_M / 16; ++i) {
            use(i * 16 + lane / 4, sums[i][j][0], sums[i][j][1]);
            use(i * 16 + lane / 4 + 8, sums[i][j][2], sums[i][j][3]);
        }
    }
}

// Nothing becomes of chunks of C, rounded, on their way to memory.
struct AsTheyAre {
    __device__ bool changes() const { return false; }
    template <class T> __device__ void load(Vector<T, CHUNK>&, size_t) const {}
    template <class T> __device__ void operator()(Vector<T, CHUNK>&, const Vector<T, CHUNK>&, size_t, size_t) const {}
};

// A warp writes the ROWS rows of CHUNKS chunks that it has in shared memory to `corner` of C, row-major `[m, n]`. Where
// `end` changes them, end.load(beside, at) asks for what end(chunk, beside, at, m·n) needs for the chunk from element `at` on,
// a few rows ahead.
template <class T, int ROWS, int CHUNKS, class End>
__device__ void write_lines(const unsigned char* rows, const Corner& corner, int m, int n, T* c, const End& end) {
    constexpr int TURN = 32 / CHUNKS, AHEAD = 4; // rows; turns
    __syncwarp();
    const unsigned lane = threadIdx.x % 32, chunk = lane % CHUNKS;
    const int col = corner.n + chunk * CHUNK, first = lane / CHUNKS, last = min(ROWS, m - corner.m);
    if (col >= n) return;
    const auto at = [&](int row) { return size_t(corner.m + row) * n + col; };
    const auto from = [&](int row) { return *reinterpret_cast<const uint4*>(rows + place<CHUNKS>(row, chunk)); };
    Vector<T, CHUNK> out;
    if (!end.changes()) {
#pragma unroll 4
        for (int row = first; row < last; row += TURN) out.words = from(row), out.store(c + at(row));
        return;
    }
    Vector<T, CHUNK> beside[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
        if (first + i * TURN < last) end.load(beside[i], at(first + i * TURN));
    }
    // What is done with a chunk may be much, and is compiled once: what is beside it moves up.
#pragma unroll 1
    for (int row = first; row < last; row += TURN) {
        out.words = from(row);
        end(out, beside[0], at(row), size_t(m) * n);
        out.store(c + at(row));
#pragma unroll
        for (int i = 1; i < AHEAD; ++i) beside[i - 1] = beside[i];
        if (row + AHEAD * TURN < last) end.load(beside[AHEAD - 1], at(row + AHEAD * TURN));
    }
}

// Writes C, row-major `[m, n]`, as rows of 16-bit elements in whole lines, after finish(col)(low, high) has changed the sums
// of columns col and col + 1 of C, and `end` the rounded chunks. The rows of each warp go through its own part of `shared`,
// THREADS / 32 times WARP_M · WARP_N · 2 bytes.
template <class T, class S, class Finish, class End>
__device__ void store_rows(Sums<S>& sums, const Corner& corner, int m, int n, unsigned char* shared, T* c, Finish finish,
                           const End& end) {
    constexpr int CHUNKS = S::WARP_N / CHUNK;
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Corner mine = warp_corner<S>(corner);
    unsigned char* rows = shared + warp * S::WARP_M * S::WARP_N * 2;
    each_pair<S>(sums, [&](unsigned col) {
        // Rows of the same remainder by eight are permuted alike.
        unsigned char* to = rows + place<CHUNKS>(lane / 4, col / CHUNK) + lane % 4 * 4;
        return [&, to, use = finish(mine.n + int(col))](unsigned row, float low, float high) mutable {
            use(low, high);
            *reinterpret_cast<unsigned*>(to + (row - lane / 4) * CHUNKS * 16) = pack<T>(low, high);
        };
    });
    write_lines<T, S::WARP_M, CHUNKS>(rows, mine, m, n, c, end);
}

// Writes Cᵀ, row-major `[n, m]`, in the same way, after finish(row)(low, high) has changed sums of row `row` of C. What two
// threads of a quad have of neighbouring rows is exchanged as 8×8 matrices in 16 bits.
template <class T, class S, class Finish, class End>
__device__ void store_transposed(Sums<S>& sums, const Corner& corner, int m, int n, unsigned char* shared, T* c,
                                 Finish finish, const End& end) {
    constexpr int CHUNKS = S::WARP_M / CHUNK;
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Corner mine = warp_corner<S>(corner);
    unsigned char* rows = shared + warp * S::WARP_M * S::WARP_N * 2;
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        auto use = finish(mine.m + i * 8 + int(lane / 4));
        unsigned char* to = rows + place<CHUNKS>(lane / 4, i) + lane % 4 * 4;
#pragma unroll
        for (int j = 0; j < S::WARP_N / 8; ++j) {
            float low = sums[i / 2][j][i % 2 * 2], high = sums[i / 2][j][i % 2 * 2 + 1];
            use(low, high);
            *reinterpret_cast<unsigned*>(to + j * 8 * CHUNKS * 16) = transpose_matrix(pack<T>(low, high));
        }
    }
    write_lines<T, S::WARP_N, CHUNKS>(rows, {mine.n, mine.m}, n, m, c, end);
}
