// D = alpha·op(A)·op(B) + beta·C + bias, column-major, one thread an entry: what a library computes, without its art.

#include "linear/type.cuh"

// As in lib.rs.
struct Side {
    const void* data;
    unsigned long long leading;
    Type type;
    int turned;

    // Entry (i, j) of op(matrix).
    __device__ float operator()(unsigned long long i, unsigned long long j) const {
        return read(data, type, turned ? j + i * leading : i + j * leading);
    }
};

extern "C" __global__ void product(Side a, Side b, int m, int n, int k, float alpha, float beta, const void* bias,
                                   Type bias_type, void* d, Type type, unsigned long long leading) {
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= unsigned(m) * unsigned(n)) return;
    const unsigned i = at % m, j = at / m;
    float sum = 0.0f;
    for (int step = 0; step < k; ++step) sum = fmaf(a(i, step), b(step, j), sum);
    sum *= alpha;
    // What is overwritten is not read: it may be anything.
    if (beta != 0.0f) sum = fmaf(beta, read(d, type, i + j * leading), sum);
    if (bias) sum += read(bias, bias_type, i);
    write(d, type, i + j * leading, sum);
}
