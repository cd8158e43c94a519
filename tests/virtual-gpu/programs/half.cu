// Arithmetic in half precision, both kinds, single and in pairs, through the toolkit's headers.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern "C" __global__ void halves(const __half* x, const __half* y, __half* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    __half a = x[i], b = y[i];
    out[0 * n + i] = __hadd(a, b);
    out[1 * n + i] = __hsub(a, b);
    out[2 * n + i] = __hmul(a, b);
    out[3 * n + i] = __hfma(a, b, a);
    out[4 * n + i] = __hmax(a, b);
    out[5 * n + i] = __hmin(a, b);
    out[6 * n + i] = __habs(__hneg(a));
    out[7 * n + i] = __hlt(a, b) ? a : b;
    out[8 * n + i] = __float2half_rn(__half2float(a) * 3.0f);
    out[9 * n + i] = __int2half_rn(__half2int_rz(b));
}

extern "C" __global__ void pairs(const __half2* x, const __half2* y, __half2* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    __half2 a = x[i], b = y[i];
    out[0 * n + i] = __hadd2(a, b);
    out[1 * n + i] = __hfma2(a, b, b);
    out[2 * n + i] = __hmul2_sat(a, b);
    out[3 * n + i] = __hmax2(a, b);
    out[4 * n + i] = __hgt2(a, b);
    out[5 * n + i] = __lowhigh2highlow(__hneg2(a));
    out[6 * n + i] = __hfma2_relu(a, b, a);
}

extern "C" __global__ void brains(const __nv_bfloat162* x, const __nv_bfloat162* y, __nv_bfloat162* out, float* sums, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    __nv_bfloat162 a = x[i], b = y[i];
    out[0 * n + i] = __hadd2(a, b);
    out[1 * n + i] = __hmul2(a, b);
    out[2 * n + i] = __hfma2(a, b, a);
    out[3 * n + i] = __hmin2(a, b);
    out[4 * n + i] = __floats2bfloat162_rn(__low2float(a) / 3.0f, __high2float(b) / 7.0f);
    float2 f = __bfloat1622float2(a);
    sums[i] = f.x + f.y;
}
