// LayerNorm, forward and backward.
//
// Bound by memory, so everything is read once. A team of threads (blockDim.x, whole warps) takes a row and holds it in
// registers, for mean, deviation and output each need all of it; a block is blockDim.y teams with as many rows in flight.
// What all rows share lies in shared memory, read once a block: the weight, and in forward the bias. In backward each
// thread also sums its columns of dw and db over the rows it sees, which a block adds up at its end.
//
// Thread t of a team owns columns (s·blockDim.x + t)·V … + V of every row, s < STEPS: a warp's accesses are contiguous,
// 16 bytes a lane.
//
// Bytes for N rows of D elements of size e, in B blocks:
//   forward   N·D·2e + N·8 + B·D·8                    (least: N·D·2e + N·8 + D·8)
//   backward  N·D·3e + N·8 + B·D·4 + 2·B·D·8          (least: N·D·3e + N·8 + D·4 + 2·D·8)
// where the last term is each block's part of dw and db, written and read again, through L2. dw and db are summed in an
// order that the shape alone decides: no atomics, the same bits on every run and every GPU.

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

// V columns of f32 from or to memory of any kind, by 16 bytes where V allows.
template <int V> __device__ void load_columns(float (&out)[V], const float* from) {
    if constexpr (V % 4 == 0) {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            const float4 x = *reinterpret_cast<const float4*>(from + i);
            out[i] = x.x, out[i + 1] = x.y, out[i + 2] = x.z, out[i + 3] = x.w;
        }
    } else {
        out[0] = from[0];
    }
}

template <int V> __device__ void store_columns(const float (&values)[V], float* to) {
    if constexpr (V % 4 == 0) {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            *reinterpret_cast<float4*>(to + i) = float4{values[i], values[i + 1], values[i + 2], values[i + 3]};
        }
    } else {
        to[0] = values[0];
    }
}

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

    // Fills it from a parameter, zeros past its end. The first team does; all may read after a barrier.
    __device__ void fill(const float* from, int cols) const {
        if (threadIdx.y > 0) return;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            float values[V] = {};
            if (column<V>(s) < cols) load_columns<V>(values, from + column<V>(s));
            set(s, values);
        }
    }
};

extern __shared__ float4 dynamic[];

// y = w∘(x − μ)·r + b
template <class T, int V, int STEPS>
__device__ void forward(const T* x, const float* weight, const float* bias, float eps, int rows, int cols, T* y,
                        float* mean_out, float* rstd_out) {
    __shared__ float sums[32], squares[32];
    const Columns<V, STEPS> ws{reinterpret_cast<float*>(dynamic)}, bs{ws.base + ws.size()};
    ws.fill(weight, cols);
    bs.fill(bias, cols);
    __syncthreads();
    const float share = 1.0f / cols;
    // All teams of a block go round together, for their barriers; those past the last row have nothing to do.
    for (int first = blockIdx.x * blockDim.y; first < rows; first += gridDim.x * blockDim.y) {
        const int row = first + threadIdx.y;
        const bool there = row < rows;
        Row<T, V, STEPS> values;
        values.load(x + size_t(row) * cols, cols, there);
        float sum = 0.0f;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
#pragma unroll
            for (int i = 0; i < V; ++i) sum += values.vectors[s][i];
        }
        const float mean = team_sum(sum, sums) * share;
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
        const float rstd = rsqrtf(team_sum(square, squares) * share + eps);
        if (!there) continue;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            if (column<V>(s) >= cols) continue;
            float w[V], b[V];
            ws.get(s, w);
            bs.get(s, b);
            Vector<T, V> out;
#pragma unroll
            for (int i = 0; i < V; ++i) out.set(i, (values.vectors[s][i] - mean) * rstd * w[i] + b[i]);
            out.store(y + size_t(row) * cols + column<V>(s));
        }
        if (threadIdx.x == 0) {
            mean_out[row] = mean;
            rstd_out[row] = rstd;
        }
    }
}

// dx = r·(g − mean(g) − x̂·mean(g∘x̂)) with g = w∘dy, into dy's place (not where `dx` is null), and this block's part of
// dw = Σ dy∘x̂ and db = Σ dy, to partials[block][2] in the order of `Columns` (not where it is null).
template <class T, int V, int STEPS>
__device__ void backward(const T* dy, const T* x, const float* weight, const float* means, const float* rstds, int rows,
                         int cols, T* dx, float* partials) {
    __shared__ float sums[2][32], dots[2][32]; // of even and odd rounds: one barrier a round then suffices
    float d_weight[STEPS][V] = {}, d_bias[STEPS][V] = {};
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
        const float mean = there ? means[row] : 0.0f, rstd = there ? rstds[row] : 0.0f;
        float sum = 0.0f, dot = 0.0f;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            float w[V];
            ws.get(s, w);
#pragma unroll
            for (int i = 0; i < V; ++i) {
                // Past the row's end dy is zero, and so is everything that is summed.
                const float d = dys.vectors[s][i], normal = (xs.vectors[s][i] - mean) * rstd, g = w[i] * d;
                sum += g;
                dot += g * normal;
                d_weight[s][i] += d * normal;
                d_bias[s][i] += d;
            }
        }
        if (!dx) continue;
        team_sums(sum, dot, sums[parity], dots[parity]);
        sum *= share, dot *= share;
        if (!there) continue;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            if (column<V>(s) >= cols) continue;
            float w[V];
            ws.get(s, w);
            Vector<T, V> out;
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const float normal = (xs.vectors[s][i] - mean) * rstd;
                out.set(i, rstd * (w[i] * dys.vectors[s][i] - sum - normal * dot));
            }
            out.store(dx + size_t(row) * cols + column<V>(s));
        }
    }
    if (!partials) return;
    // The teams' sums, added to the first team's in their order. The weight is not needed any more.
    const Columns<V, STEPS> theirs_w = ws, theirs_b{ws.base + ws.size()};
    for (int team = 1; team < blockDim.y; ++team) {
        __syncthreads();
        if (threadIdx.y == team) {
#pragma unroll
            for (int s = 0; s < STEPS; ++s) theirs_w.set(s, d_weight[s]), theirs_b.set(s, d_bias[s]);
        }
        __syncthreads();
        if (threadIdx.y == 0) {
#pragma unroll
            for (int s = 0; s < STEPS; ++s) {
                float w[V], b[V];
                theirs_w.get(s, w);
                theirs_b.get(s, b);
#pragma unroll
                for (int i = 0; i < V; ++i) d_weight[s][i] += w[i], d_bias[s][i] += b[i];
            }
        }
    }
    if (threadIdx.y > 0) return;
    const Columns<V, STEPS> part_w{partials + size_t(blockIdx.x) * 2 * ws.size()}, part_b{part_w.base + ws.size()};
#pragma unroll
    for (int s = 0; s < STEPS; ++s) part_w.set(s, d_weight[s]), part_b.set(s, d_bias[s]);
}

// Rows whose length is a multiple of a vector's are read by 16-byte vectors, others by elements. STEPS: 16 columns a
// thread by vectors of 16-bit elements, else 8, which is what registers hold.
//
// Dynamic shared memory: 2·blockDim.x·V·STEPS floats.
#define LAYER_NORM(NAME, T, V, STEPS)                                                                                    \
    extern "C" __global__ __launch_bounds__(MAX_THREADS) void layer_norm_forward_##NAME(                                 \
        const T* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias, float eps, int rows,  \
        int cols, T* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd) {                               \
        forward<T, V, STEPS>(x, weight, bias, eps, rows, cols, y, mean, rstd);                                           \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(MAX_THREADS) void layer_norm_backward_##NAME(                                \
        const T* dy, const T* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ mean,          \
        const float* __restrict__ rstd, int rows, int cols, T* dx, float* __restrict__ partials) {                       \
        backward<T, V, STEPS>(dy, x, weight, mean, rstd, rows, cols, dx, partials);                                      \
    }

LAYER_NORM(bf16, bf16, 8, 2)
LAYER_NORM(f16, f16, 8, 2)
LAYER_NORM(f32, float, 4, 2)
LAYER_NORM(bf16_odd, bf16, 1, 8)
LAYER_NORM(f16_odd, f16, 1, 8)
LAYER_NORM(f32_odd, float, 1, 8)

// The column that `Columns` of teams of `threads` with vectors of `v` keeps at `place`.
__device__ int column_at(int place, int threads, int v) {
    const int piece = v % 4 == 0 ? 4 : 1, thread = place / piece % threads, part = place / piece / threads;
    const int s = part / (v / piece), i = part % (v / piece) * piece + place % piece;
    return (s * threads + thread) * v + i;
}

// dw += Σ_blocks partials[block][0], db += Σ_blocks partials[block][1] (not where they are null), each of `size` places.
// A block of 32×8 threads takes 32 places: row r of threads adds blocks r, r + 8, …; then the eight sums are added in order.
extern "C" __global__ __launch_bounds__(256) void layer_norm_param_gradients(const float* __restrict__ partials,
                                                                             int blocks, int size, int threads, int v,
                                                                             int cols, float* d_weight, float* d_bias) {
    __shared__ float sums[8][32];
    float* out = blockIdx.y == 0 ? d_weight : d_bias;
    if (!out) return;
    const int place = blockIdx.x * 32 + threadIdx.x, col = column_at(place, threads, v);
    float sum = 0.0f;
    if (col < cols) {
#pragma unroll 4
        for (int block = threadIdx.y; block < blocks; block += 8) {
            sum += partials[(size_t(block) * 2 + blockIdx.y) * size + place];
        }
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && col < cols) {
        float total = out[col];
#pragma unroll
        for (int r = 0; r < 8; ++r) total += sums[r][threadIdx.x];
        out[col] = total;
    }
}
