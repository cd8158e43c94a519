// Transforms and pictures: an FFT in shared memory, a convolution with a halo and constant weights, Mandelbrot in doubles,
// a median filter, Philox random numbers.

__constant__ float weights[25];

// Stockham, radix 2, one transform of n points a block.
extern "C" __global__ void fft(const float2* x, float2* out, int n, float sign) {
    extern __shared__ float2 buffer[];
    float2 *from = buffer, *to = buffer + n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) from[i] = x[blockIdx.x * n + i];
    __syncthreads();
    for (int half = n / 2, stride = 1; half >= 1; half /= 2, stride *= 2) {
        for (int t = threadIdx.x; t < n / 2; t += blockDim.x) {
            int q = t % stride, p = t / stride;
            float s, c;
            sincospif(sign * p / half, &s, &c);
            float2 a = from[q + stride * p], b = from[q + stride * (p + half)];
            float2 d = make_float2(a.x - b.x, a.y - b.y);
            to[q + stride * 2 * p] = make_float2(a.x + b.x, a.y + b.y);
            to[q + stride * (2 * p + 1)] = make_float2(d.x * c - d.y * s, d.x * s + d.y * c);
        }
        __syncthreads();
        float2* swap = from;
        from = to;
        to = swap;
    }
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[blockIdx.x * n + i] = from[i];
}

extern "C" __global__ void convolve(const unsigned char* image, float* out, int width, int height) {
    __shared__ unsigned char tile[16 + 4][16 + 4 + 1];
    int x0 = blockIdx.x * 16, y0 = blockIdx.y * 16;
    for (int i = threadIdx.y * 16 + threadIdx.x; i < 20 * 20; i += 256) {
        int x = min(max(x0 + i % 20 - 2, 0), width - 1), y = min(max(y0 + i / 20 - 2, 0), height - 1);
        tile[i / 20][i % 20] = image[y * width + x];
    }
    __syncthreads();
    int x = x0 + threadIdx.x, y = y0 + threadIdx.y;
    if (x >= width || y >= height) return;
    float sum = 0;
#pragma unroll
    for (int dy = 0; dy < 5; dy++)
#pragma unroll
        for (int dx = 0; dx < 5; dx++) sum += weights[dy * 5 + dx] * tile[threadIdx.y + dy][threadIdx.x + dx];
    out[y * width + x] = sum;
}

extern "C" __global__ void mandelbrot(unsigned short* out, int width, int height, double cx, double cy, double scale, int limit) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    double a = cx + (x - width / 2) * scale, b = cy + (y - height / 2) * scale, u = 0, v = 0;
    int i = 0;
    for (; i < limit && u * u + v * v <= 4.0; i++) {
        double t = u * u - v * v + a;
        v = 2 * u * v + b;
        u = t;
    }
    out[y * width + x] = (unsigned short)i;
}

__device__ __forceinline__ void order(unsigned char& a, unsigned char& b) {
    unsigned char least = min(a, b);
    b = max(a, b);
    a = least;
}

extern "C" __global__ void median(const unsigned char* image, unsigned char* out, int width, int height) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    unsigned char v[9];
    for (int i = 0; i < 9; i++) {
        int u = min(max(x + i % 3 - 1, 0), width - 1), w = min(max(y + i / 3 - 1, 0), height - 1);
        v[i] = image[w * width + u];
    }
    for (int i = 0; i < 5; i++)
        for (int j = i + 1; j < 9; j++) order(v[i], v[j]);
    out[y * width + x] = v[4];
}

// Philox 4×32, ten rounds, and a uniform number from each word.
extern "C" __global__ void philox(uint4* out, float* uniform, unsigned long long seed, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint4 c = make_uint4(i, 0, 0, 0);
    unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
    for (int r = 0; r < 10; r++) {
        unsigned h0 = __umulhi(0xD2511F53u, c.x), l0 = 0xD2511F53u * c.x;
        unsigned h1 = __umulhi(0xCD9E8D57u, c.z), l1 = 0xCD9E8D57u * c.z;
        c = make_uint4(h1 ^ c.y ^ k0, l1, h0 ^ c.w ^ k1, l0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[i] = c;
    uniform[i] = (c.x >> 8) * (1.0f / (1 << 24));
}
