// The rest of the language: recursion, virtual functions, the heap, assertions, bits and bytes, carries.

// ---- recursion
__device__ __noinline__ unsigned ackermann(unsigned m, unsigned n) {
    if (m == 0) return n + 1;
    if (n == 0) return ackermann(m - 1, 1);
    return ackermann(m - 1, ackermann(m, n - 1));
}

extern "C" __global__ void recursion(const unsigned* m, const unsigned* n, unsigned* out) {
    int i = threadIdx.x;
    out[i] = ackermann(m[i], n[i]);
}

__device__ __noinline__ void quick_sort(int* x, int from, int to) {
    if (to - from < 2) return;
    int pivot = x[(from + to) / 2], i = from, j = to - 1;
    while (i <= j) {
        while (x[i] < pivot) i++;
        while (x[j] > pivot) j--;
        if (i <= j) {
            int t = x[i];
            x[i++] = x[j];
            x[j--] = t;
        }
    }
    quick_sort(x, from, j + 1);
    quick_sort(x, i, to);
}

extern "C" __global__ void sort_each(int* x, int n) { quick_sort(x + (blockIdx.x * blockDim.x + threadIdx.x) * n, 0, n); }

// ---- classes
struct Shape {
    float scale;
    __device__ Shape(float s) : scale(s) {}
    __device__ virtual float area() const = 0;
    __device__ virtual int corners() const { return 0; }
    __device__ virtual ~Shape() {}
};
struct Circle : Shape {
    __device__ Circle(float s) : Shape(s) {}
    __device__ float area() const override { return 3.0f * scale * scale; }
};
struct Box : Shape {
    float height;
    __device__ Box(float s, float h) : Shape(s), height(h) {}
    __device__ float area() const override { return scale * height; }
    __device__ int corners() const override { return 4; }
};

extern "C" __global__ void shapes(const int* kind, float* area, int* corners) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    Shape* s = kind[i] == 0 ? (Shape*)new Circle(i) : new Box(i, 2.0f);
    area[i] = s->area();
    corners[i] = s->corners();
    delete s;
}

// ---- the heap
extern "C" __global__ void lists(int* sums, int length) {
    struct Node {
        int value;
        Node* next;
    };
    Node* first = nullptr;
    for (int i = 0; i < length + (int)threadIdx.x % 3; i++) {
        Node* node = (Node*)malloc(sizeof(Node));
        node->value = i * threadIdx.x;
        node->next = first;
        first = node;
    }
    int sum = 0;
    while (first) {
        sum += first->value;
        Node* next = first->next;
        free(first);
        first = next;
    }
    sums[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// ---- assertions
extern "C" __global__ void asserted(const int* x, int limit) { assert(x[threadIdx.x] < limit && "too large"); }

// ---- bits and bytes
__device__ int dp4a(int a, int b, int c) {
    int d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
__device__ unsigned dp4a(unsigned a, unsigned b, unsigned c) {
    unsigned d;
    asm("dp4a.u32.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
__device__ int dp2a_lo(int a, int b, int c) {
    int d;
    asm("dp2a.lo.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

extern "C" __global__ void bits(const unsigned* x, const unsigned* y, unsigned* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned a = x[i], b = y[i], k = 0;
    auto put = [&](unsigned v) { out[k++ * n + i] = v; };
    put(__popc(a) + __clz(b) * 100);
    put(__brev(a));
    put(__ffs(a));
    put(__byte_perm(a, b, 0x3715));
    put(__funnelshift_l(a, b, b & 63));
    put(__funnelshift_rc(a, b, a & 63));
    put(dp4a((int)a, (int)b, 7));
    put(dp4a(a, b, 7u));
    put(dp2a_lo((int)a, (int)b, -1));
    put(__vadd4(a, b));
    put(__vsub2(a, b));
    put(__vabsdiffu4(a, b));
    put(__vsadu4(a, b));
    put(__vmaxs2(a, b));
    put(__vminu4(a, b));
    put(__vcmpgtu4(a, b));
    put(__vavgu4(a, b));
    put(__vaddss2(a, b));
    put(__sad((int)a, (int)b, 5u));
    put(__rhadd((int)a, (int)b));
    put(__mul24((int)a, (int)b));
    put(__umulhi(a, b));
}

// ---- wide integers
extern "C" __global__ void wide(const unsigned long long* x, const unsigned long long* y, unsigned long long* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned long long a = x[i], b = y[i];
    unsigned long long low = a * b, high = __umul64hi(a, b), sum, carried;
    asm("{\n\tadd.cc.u64 %0, %2, %3;\n\taddc.u64 %1, %4, 0;\n\t}" : "=l"(sum), "=l"(carried) : "l"(low), "l"(a), "l"(high));
    out[0 * n + i] = sum;
    out[1 * n + i] = carried;
    out[2 * n + i] = a / (b | 1);
    out[3 * n + i] = (unsigned long long)((long long)a % (long long)(b | 1));
    out[4 * n + i] = (unsigned long long)__mul64hi((long long)a, (long long)b);
    out[5 * n + i] = a << (b & 63) | a >> (-b & 63);
}
