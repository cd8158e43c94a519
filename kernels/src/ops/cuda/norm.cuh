// What LayerNorm and RMSNorm share: rows in registers, parameters in shared memory, and the sums of their gradients.
//
// Both are bound by memory, so everything is read once. A team of threads (blockDim.x, whole warps) takes a row and holds
// it in registers, for statistics and output each need all of it; a block is blockDim.y teams with as many rows in flight.
// What all rows share lies in shared memory, read once a block: the weight, and in forward the bias. In backward each
// thread also sums its columns of the parameters' gradients over the rows it sees, which a block adds up at its end.
//
// Thread t of a team owns columns (s·blockDim.x + t)·V … + V of every row, s < STEPS: a warp's accesses are contiguous,
// 16 bytes a lane.
//
// A block's parameters and its part of their gradients are traffic that its rows must pay for, so that blocks take enough
// rows to make it less than a tenth (norm.rs), and are few where rows are: 2,048 rows of LayerNorm's backward are 38 blocks.
// They keep the memory busy all the same: a block has 40 KB of x and dy on their way, and 1.5 TB/s of an A100 times 0.7 µs
// until they come is 1 MB, or 28 KB a block. The gradients are summed in an order that the shape alone decides: no
// atomics, the same bits on every run and every GPU.
#pragma once

#include "cuda/element.cuh"
#include "cuda/reduce.cuh"

constexpr int MAX_THREADS = 640; // 16 columns a thread: rows of 10,240 elements; 96 registers a thread

// The first of a thread's columns in step s.
template <int V> __device__ int column(int s) { return (s * int(blockDim.x) + int(threadIdx.x)) * V; }

// A thread's part of one row.
template <class T, int V, int STEPS> struct Row {
    Vector<T, V> vectors[STEPS];

    // Zeros past the row's end, and where there is no row.
    __device__ void load(const T* row, int cols, bool there) {
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            if (there && column<V>(s) < cols) vectors[s].load(row + column<V>(s));
        }
    }
};

// Columns of f32, blockDim.x·V·STEPS of them, in pieces of 16 bytes where neighbouring threads' pieces are neighbours: in
// shared memory a warp's access then has no bank conflicts, in global memory it is whole sectors.
template <int V, int STEPS> struct Columns {
    static constexpr int PIECE = V % 4 == 0 ? 4 : 1;
    float* base;

    static __device__ int size() { return int(blockDim.x) * V * STEPS; }

    __device__ float* place(int s, int i) const {
        return base + ((s * (V / PIECE) + i / PIECE) * int(blockDim.x) + int(threadIdx.x)) * PIECE;
    }

    __device__ void get(int s, float (&out)[V]) const {
#pragma unroll
        for (int i = 0; i < V; i += PIECE) {
            float piece[PIECE];
            load_columns<PIECE>(piece, place(s, i));
#pragma unroll
            for (int e = 0; e < PIECE; ++e) out[i + e] = piece[e];
        }
    }

    __device__ void set(int s, const float (&values)[V]) const {
#pragma unroll
        for (int i = 0; i < V; i += PIECE) {
            float piece[PIECE];
#pragma unroll
            for (int e = 0; e < PIECE; ++e) piece[e] = values[i + e];
            store_columns<PIECE>(piece, place(s, i));
        }
    }

    // Fills it from a parameter, zeros past its end. The first team does; all may read after a barrier. A warp reads pieces
    // that lie side by side, whole sectors, in an order in which eight lanes' places are side by side, too: with H pieces
    // in a thread's vector, those of one number first.
    __device__ void fill(const float* from, int cols) const {
        if (threadIdx.y > 0) return;
        constexpr int H = V / PIECE, TURN = 32 / H;
        const int lane = threadIdx.x % 32, mine = threadIdx.x - lane + lane % TURN * H + lane / TURN;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
#pragma unroll
            for (int h = 0; h < H; ++h) {
                const int piece = h * int(blockDim.x) + mine, col = (s * H * int(blockDim.x) + piece) * PIECE;
                float values[PIECE] = {};
                if (col < cols) load_columns<PIECE>(values, from + col);
                store_columns<PIECE>(values, base + ((s * H + piece % H) * int(blockDim.x) + piece / H) * PIECE);
            }
        }
    }
};

extern __shared__ float4 dynamic[];

// y = w∘(x − μ)·r + b where CENTERED, else w∘x·r, for which `bias` and `mean_out` are null.
template <bool CENTERED, class T, int V, int STEPS>
__device__ void norm_forward(const T* x, const float* weight, const float* bias, float eps, int rows, int cols, T* y,
                             float* mean_out, float* rstd_out) {
    __shared__ float sums[32], squares[2][32]; // of even and odd rounds: one barrier a round suffices for RMSNorm
    const Columns<V, STEPS> ws{reinterpret_cast<float*>(dynamic)}, bs{ws.base + ws.size()};
    ws.fill(weight, cols);
    if constexpr (CENTERED) bs.fill(bias, cols);
    __syncthreads();
    const float share = 1.0f / cols;
    int parity = 0;
    // All teams of a block go round together, for their barriers; those past the last row have nothing to do.
    for (int first = blockIdx.x * blockDim.y; first < rows; first += gridDim.x * blockDim.y, parity ^= 1) {
        const int row = first + threadIdx.y;
        const bool there = row < rows;
        Row<T, V, STEPS> values;
        values.load(x + size_t(row) * cols, cols, there);
        float mean = 0.0f;
        if constexpr (CENTERED) {
            float sum = 0.0f;
#pragma unroll
            for (int s = 0; s < STEPS; ++s) {
#pragma unroll
                for (int i = 0; i < V; ++i) sum += values.vectors[s][i];
            }
            mean = team_sum(sum, sums) * share;
        }
        // A second pass: the squares of small deviations do not drown in a large mean.
        float square = 0.0f;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            if (column<V>(s) >= cols) continue;
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const float d = values.vectors[s][i] - mean;
                square += d * d;
            }
        }
        const float rstd = rsqrtf(team_sum(square, squares[parity]) * share + eps);
        if (!there) continue;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            if (column<V>(s) >= cols) continue;
            float w[V], b[V] = {};
            ws.get(s, w);
            if constexpr (CENTERED) bs.get(s, b);
            Vector<T, V> out;
#pragma unroll
            for (int i = 0; i < V; ++i) out.set(i, (values.vectors[s][i] - mean) * rstd * w[i] + b[i]);
            out.store(y + size_t(row) * cols + column<V>(s));
        }
        if (threadIdx.x == 0) {
            if constexpr (CENTERED) mean_out[row] = mean;
            rstd_out[row] = rstd;
        }
    }
}

// dx = r·(g − mean(g) − x̂·mean(g∘x̂)) with g = w∘dy, and what it is `added_to` where that is not null, rounded once, into
// dy's place (not where `dx` is null), and this block's part of
// dw = Σ dy∘x̂ and db = Σ dy, to partials[block][2] in the order of `Columns` (not where it is null). Where not CENTERED
// there is no mean of g, no db (partials[block][1]), and `means` is null.
template <bool CENTERED, class T, int V, int STEPS>
__device__ void norm_backward(const T* dy, const T* x, const float* weight, const float* means, const float* rstds,
                              int rows, int cols, const T* added_to, T* dx, float* partials) {
    constexpr int PARAMETERS = CENTERED ? 2 : 1;
    __shared__ float sums[2][32], dots[2][32]; // of even and odd rounds: one barrier a round then suffices
    float gradients[PARAMETERS][STEPS][V] = {};
    const Columns<V, STEPS> ws{reinterpret_cast<float*>(dynamic)};
    ws.fill(weight, cols);
    __syncthreads();
    const float share = 1.0f / cols;
    int parity = 0;
    for (int first = blockIdx.x * blockDim.y; first < rows; first += gridDim.x * blockDim.y, parity ^= 1) {
        const int row = first + threadIdx.y;
        const bool there = row < rows;
        Row<T, V, STEPS> xs, dys;
        xs.load(x + size_t(row) * cols, cols, there);
        dys.load(dy + size_t(row) * cols, cols, there);
        const float mean = CENTERED && there ? means[row] : 0.0f, rstd = there ? rstds[row] : 0.0f;
        float sum = 0.0f, dot = 0.0f;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            float w[V];
            ws.get(s, w);
#pragma unroll
            for (int i = 0; i < V; ++i) {
                // Past the row's end dy is zero, and so is everything that is summed.
                const float d = dys.vectors[s][i], normal = (xs.vectors[s][i] - mean) * rstd, g = w[i] * d;
                dot += g * normal;
                gradients[0][s][i] += d * normal;
                if constexpr (CENTERED) sum += g, gradients[1][s][i] += d;
            }
        }
        if (!dx) continue;
        if constexpr (CENTERED) {
            team_sums(sum, dot, sums[parity], dots[parity]);
        } else {
            dot = team_sum(dot, dots[parity]);
        }
        sum *= share, dot *= share;
        if (!there) continue;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            if (column<V>(s) >= cols) continue;
            float w[V];
            ws.get(s, w);
            Vector<T, V> out;
            if (added_to) out.load(added_to + size_t(row) * cols + column<V>(s));
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const float normal = (xs.vectors[s][i] - mean) * rstd;
                out.set(i, out[i] + rstd * (w[i] * dys.vectors[s][i] - sum - normal * dot));
            }
            out.store(dx + size_t(row) * cols + column<V>(s));
        }
    }
    if (!partials) return;
    // The teams' sums, added to the first team's in their order. The weight is not needed any more.
    for (int team = 1; team < blockDim.y; ++team) {
        __syncthreads();
#pragma unroll
        for (int p = 0; p < PARAMETERS; ++p) {
            const Columns<V, STEPS> theirs{ws.base + p * ws.size()};
#pragma unroll
            for (int s = 0; s < STEPS; ++s) {
                if (threadIdx.y == team) theirs.set(s, gradients[p][s]);
            }
        }
        __syncthreads();
        if (threadIdx.y > 0) continue;
#pragma unroll
        for (int p = 0; p < PARAMETERS; ++p) {
            const Columns<V, STEPS> theirs{ws.base + p * ws.size()};
#pragma unroll
            for (int s = 0; s < STEPS; ++s) {
                float values[V];
                theirs.get(s, values);
#pragma unroll
                for (int i = 0; i < V; ++i) gradients[p][s][i] += values[i];
            }
        }
    }
    if (threadIdx.y > 0) return;
#pragma unroll
    for (int p = 0; p < PARAMETERS; ++p) {
        const Columns<V, STEPS> part{partials + (size_t(blockIdx.x) * PARAMETERS + p) * ws.size()};
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            if (column<V>(s) < cols) part.set(s, gradients[p][s]);
        }
    }
}

// The column that `Columns` of teams of `threads` with vectors of `v` keeps at `place`.
__device__ inline int column_at(int place, int threads, int v) {
    const int piece = v % 4 == 0 ? 4 : 1, thread = place / piece % threads, part = place / piece / threads;
    const int s = part / (v / piece), i = part % (v / piece) * piece + place % piece;
    return (s * threads + thread) * v + i;
}

// out += Σ_blocks partials[block][p] of `parameters`, each of `size` places, of which a block of 32×8 threads takes 32.
__device__ inline void add_norm_gradients(const float* partials, int parameters, int p, int blocks, int size, int threads,
                                          int v, int cols, float* out) {
    const int place = blockIdx.x * 32 + threadIdx.x, col = column_at(place, threads, v);
    const float sum =
        sum_of_parts(partials + size_t(p) * size + place, size_t(parameters) * size, blocks, col < cols);
    if (threadIdx.y == 0 && col < cols) out[col] += sum;
}
