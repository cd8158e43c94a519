// The functions of the math library, whose code takes in long division, tables, slow paths and bit tricks.

extern "C" __global__ void singles(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i];
    out[0 * n + i] = expf(v);
    out[1 * n + i] = logf(fabsf(v));
    out[2 * n + i] = sinf(v);
    out[3 * n + i] = cosf(v * 10000.0f);
    out[4 * n + i] = powf(fabsf(v), 1.7f);
    out[5 * n + i] = tanhf(v);
    out[6 * n + i] = erff(v);
    out[7 * n + i] = cbrtf(v);
    out[8 * n + i] = atan2f(v, 2.0f);
    out[9 * n + i] = fmodf(v, 0.7f);
    out[10 * n + i] = v / 3.1f;
    out[11 * n + i] = sqrtf(fabsf(v));
    out[12 * n + i] = floorf(v) + ceilf(v) * 2 + rintf(v) * 4 + truncf(v) * 8;
    out[13 * n + i] = log1pf(fabsf(v)) + expm1f(v * 0.1f);
}

extern "C" __global__ void doubles(const double* x, double* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    double v = x[i];
    out[0 * n + i] = exp(v);
    out[1 * n + i] = log(fabs(v));
    out[2 * n + i] = sin(v * 1000.0);
    out[3 * n + i] = pow(fabs(v), 2.3);
    out[4 * n + i] = sqrt(fabs(v)) / 3.0;
    out[5 * n + i] = tanh(v);
    out[6 * n + i] = 1.0 / v;
    out[7 * n + i] = erf(v);
}

extern "C" __global__ void integers(const long long* x, const long long* y, long long* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    long long a = x[i], b = y[i];
    unsigned u = (unsigned)a, w = (unsigned)b;
    out[0 * n + i] = a / b;
    out[1 * n + i] = a % b;
    out[2 * n + i] = (long long)((unsigned long long)a / (unsigned long long)b);
    out[3 * n + i] = __mul64hi(a, b);
    out[4 * n + i] = __popcll(a) + 100 * __clzll(b) + 10000 * __ffsll(a);
    out[5 * n + i] = (long long)__brevll(a);
    out[6 * n + i] = __byte_perm(u, w, 0x5140);
    out[7 * n + i] = __funnelshift_l(u, w, (unsigned)i);
    int dot;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(dot) : "r"(u), "r"(w), "r"(i));
    out[8 * n + i] = dot;
    out[9 * n + i] = (int)u / ((int)w | 1) + (int)u % 10;
    out[10 * n + i] = u / 7 + u % 1000003u;
    out[11 * n + i] = __umulhi(u, w) ^ (unsigned)__mulhi((int)u, (int)w);
    out[12 * n + i] = __sad((int)u, (int)w, 5) + __hadd((int)u, (int)w) + __rhadd((int)u, (int)w);
}

// Bytes and half words in a register.
extern "C" __global__ void packed(const unsigned* x, const unsigned* y, unsigned* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned a = x[i], b = y[i];
    out[0 * n + i] = __vadd4(a, b);
    out[1 * n + i] = __vsub2(a, b);
    out[2 * n + i] = __vabsdiffu4(a, b);
    out[3 * n + i] = __vmaxs2(a, b);
    out[4 * n + i] = __vminu4(a, b);
    out[5 * n + i] = __vavgu4(a, b);
    out[6 * n + i] = __vcmpgtu4(a, b);
    out[7 * n + i] = __vaddus4(a, b);
    out[8 * n + i] = __vsadu4(a, b);
}
