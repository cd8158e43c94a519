// LayerNorm, forward and backward.
//
// Bound by memory, so everything is read once. A block takes whole rows, one after another, and holds in registers what it
// meets again: the row itself (read once, though mean, deviation and output each need all of it), its columns of the
// weight and the bias (read once a block, not once a row), and in backward its columns' share of dw and db (and then the
// weight in shared memory, for registers are short). Thread t owns
// columns (s·threads + t)·V … + V of every row, s < STEPS: a warp's accesses are contiguous, 16 bytes a lane.
//
// Bytes for N rows of D elements of size e, in B blocks:
//   forward   N·D·2e + N·8 + B·D·8                    (least: N·D·2e + N·8 + D·8)
//   backward  N·D·3e + N·8 + B·D·4 + 2·B·D·8          (least: N·D·3e + N·8 + D·4 + 2·D·8)
// where the last term is each block's part of dw and db, written and read again. dw and db are summed in a fixed order that
// the shape alone decides: no atomics, the same bits on every run and every GPU.

#include "cuda/element.cuh"
#include "cuda/reduce.cuh"

constexpr int MAX_THREADS = 640; // 16 columns a thread: rows of 10,240 elements; 96 registers a thread

// One thread's columns.
template <int V> __device__ int column(int step) { return (step * int(blockDim.x) + int(threadIdx.x)) * V; }

template <class T, int V, int STEPS> struct Row {
    Vector<T, V> vectors[STEPS];

    // Zeros past the row's end.
    __device__ void load(const T* row, int cols) {
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            if (column<V>(s) < cols) vectors[s].load(row + column<V>(s));
        }
    }
};

// f32 columns of a parameter; zeros past the row's end.
template <int V, int STEPS> __device__ void load_columns(float (&out)[STEPS][V], const float* from, int cols) {
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
#pragma unroll
        for (int i = 0; i < V; ++i) out[s][i] = 0.0f;
        if (column<V>(s) < cols) {
            if constexpr (V % 4 == 0) {
#pragma unroll
                for (int i = 0; i < V; i += 4) {
                    const float4 x = *reinterpret_cast<const float4*>(from + column<V>(s) + i);
                    out[s][i] = x.x, out[s][i + 1] = x.y, out[s][i + 2] = x.z, out[s][i + 3] = x.w;
                }
            } else {
#pragma unroll
                for (int i = 0; i < V; ++i) out[s][i] = from[column<V>(s) + i];
            }
        }
    }
}

template <int V, int STEPS> __device__ void store_columns(const float (&values)[STEPS][V], float* to, int cols) {
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        if (column<V>(s) >= cols) continue;
        if constexpr (V % 4 == 0) {
#pragma unroll
            for (int i = 0; i < V; i += 4) {
                *reinterpret_cast<float4*>(to + column<V>(s) + i) =
                    float4{values[s][i], values[s][i + 1], values[s][i + 2], values[s][i + 3]};
            }
        } else {
#pragma unroll
            for (int i = 0; i < V; ++i) to[column<V>(s) + i] = values[s][i];
        }
    }
}

// A thread's f32 columns in its own part of shared memory, where registers are short: it alone reads what it wrote, so
// no barrier is needed, and neighbours lie in neighbouring banks. 4 bytes a column and thread: blockDim.x·V·STEPS·4 bytes.
template <int V, int STEPS> struct Columns {
    __device__ Columns(const float* from, int cols) {
        float values[STEPS][V];
        load_columns(values, from, cols);
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
#pragma unroll
            for (int i = 0; i < V; ++i) *place(s, i) = values[s][i];
        }
    }

    __device__ float at(int s, int i) const { return *place(s, i); }

  private:
    static __device__ float* place(int s, int i) {
        extern __shared__ float4 columns[];
        constexpr int PIECE = V % 4 == 0 ? 4 : 1;
        const int piece = (s * V + i) / PIECE * int(blockDim.x) + int(threadIdx.x);
        return reinterpret_cast<float*>(columns) + piece * PIECE + i % PIECE;
    }
};

// y = w∘(x − μ)·r + b
template <class T, int V, int STEPS>
__device__ void forward(const T* x, const float* weight, const float* bias, float eps, int rows, int cols, T* y,
                        float* mean_out, float* rstd_out) {
    __shared__ float sums[32], squares[32];
    float w[STEPS][V], b[STEPS][V];
    load_columns(w, weight, cols);
    load_columns(b, bias, cols);
    const float share = 1.0f / cols;
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        Row<T, V, STEPS> values;
        values.load(x + size_t(row) * cols, cols);
        float sum = 0.0f;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
#pragma unroll
            for (int i = 0; i < V; ++i) sum += values.vectors[s][i];
        }
        const float mean = block_sum(sum, sums) * share;
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
        const float rstd = rsqrtf(block_sum(square, squares) * share + eps);
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            if (column<V>(s) >= cols) continue;
            Vector<T, V> out;
#pragma unroll
            for (int i = 0; i < V; ++i) out.set(i, (values.vectors[s][i] - mean) * rstd * w[s][i] + b[s][i]);
            out.store(y + size_t(row) * cols + column<V>(s));
        }
        if (threadIdx.x == 0) {
            mean_out[row] = mean;
            rstd_out[row] = rstd;
        }
    }
}

// dx = r·(g − mean(g) − x̂·mean(g∘x̂)) with g = w∘dy, into dy's place (not where `dx` is null), and this block's part of
// dw = Σ dy∘x̂ and db = Σ dy, to partials[block][2][cols] (not where it is null).
template <class T, int V, int STEPS>
__device__ void backward(const T* dy, const T* x, const float* weight, const float* means, const float* rstds, int rows,
                         int cols, T* dx, float* partials) {
    __shared__ float sums[2][32], dots[2][32]; // of even and odd rows: one barrier a row then suffices
    float d_weight[STEPS][V] = {}, d_bias[STEPS][V] = {};
    const Columns<V, STEPS> w(weight, cols);
    const float share = 1.0f / cols;
    int parity = 0;
    for (int row = blockIdx.x; row < rows; row += gridDim.x, parity ^= 1) {
        Row<T, V, STEPS> xs, dys;
        xs.load(x + size_t(row) * cols, cols);
        dys.load(dy + size_t(row) * cols, cols);
        const float mean = means[row], rstd = rstds[row];
        float sum = 0.0f, dot = 0.0f;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
#pragma unroll
            for (int i = 0; i < V; ++i) {
                // Past the row's end dy is zero, and so is everything that is summed.
                const float d = dys.vectors[s][i], normal = (xs.vectors[s][i] - mean) * rstd, g = w.at(s, i) * d;
                sum += g;
                dot += g * normal;
                d_weight[s][i] += d * normal;
                d_bias[s][i] += d;
            }
        }
        if (!dx) continue;
        sum = warp_sum(sum), dot = warp_sum(dot);
        if (blockDim.x > 32) {
            const int lane = threadIdx.x % 32;
            if (lane == 0) sums[parity][threadIdx.x / 32] = sum, dots[parity][threadIdx.x / 32] = dot;
            __syncthreads();
            const bool there = lane < blockDim.x / 32;
            sum = warp_sum(there ? sums[parity][lane] : 0.0f);
            dot = warp_sum(there ? dots[parity][lane] : 0.0f);
        }
        sum *= share, dot *= share;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            if (column<V>(s) >= cols) continue;
            Vector<T, V> out;
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const float normal = (xs.vectors[s][i] - mean) * rstd;
                out.set(i, rstd * (w.at(s, i) * dys.vectors[s][i] - sum - normal * dot));
            }
            out.store(dx + size_t(row) * cols + column<V>(s));
        }
    }
    if (partials) {
        float* mine = partials + size_t(blockIdx.x) * 2 * cols;
        store_columns(d_weight, mine, cols);
        store_columns(d_bias, mine + cols, cols);
    }
}

// Rows whose length is a multiple of a vector's are read by 16-byte vectors, others by elements. STEPS: 16 columns a
// thread by vectors of 16-bit elements, else 8, which is what registers hold.
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

// dw += Σ_blocks partials[block][0], db += Σ_blocks partials[block][1] (not where they are null). A block of 32×8 threads
// takes 32 columns: row r of threads adds blocks r, r + 8, …; then the eight sums are added in order.
extern "C" __global__ __launch_bounds__(256) void layer_norm_param_gradients(const float* __restrict__ partials,
                                                                             int blocks, int cols, float* d_weight,
                                                                             float* d_bias) {
    __shared__ float sums[8][32];
    float* out = blockIdx.y == 0 ? d_weight : d_bias;
    if (!out) return;
    const int col = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.0f;
    if (col < cols) {
#pragma unroll 4
        for (int block = threadIdx.y; block < blocks; block += 8) sum += partials[(size_t(block) * 2 + blockIdx.y) * cols + col];
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
