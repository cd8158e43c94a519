// What kernels print, and how they give up.

struct Shape {
    virtual __device__ float area() const = 0;
    virtual __device__ const char* name() const = 0;
};

struct Square : Shape {
    float side;
    __device__ Square(float s) : side(s) {}
    __device__ float area() const override { return side * side; }
    __device__ const char* name() const override { return "square"; }
};

struct Circle : Shape {
    float radius;
    __device__ Circle(float r) : radius(r) {}
    __device__ float area() const override { return 3.0f * radius * radius; }
    __device__ const char* name() const override { return "circle"; }
};

extern "C" __global__ void integers(int a, unsigned b, long long c) {
    printf("nothing\n");
    printf("[%d] [%5d] [%-5d] [%05d] [%+d] [% d] [%.4d]\n", a, a, a, a, a, a, a);
    printf("[%u] [%x] [%X] [%#x] [%#010x] [%o] [%#o]\n", b, b, b, b, b, b, b);
    printf("[%lld] [%20lld] [%-20lld|] [%llx] [%lu] [%zu]\n", c, c, c, c, (unsigned long)c, (size_t)b);
    printf("[%hd] [%hu] [%hhd] [%hhx]\n", a + 70000, a + 70000, a + 300, b);
    printf("[%*d] [%-*d] [%c%c] [%%] [%5c] [%i]\n", 7, a, 7, a, 'o', 'k', '!', a);
}

extern "C" __global__ void floats(double v, float w, float zero) {
    printf("[%f] [%.2f] [%10.3f] [%-10.1f] [%+.1f] [%010.2f]\n", v, v, v, v, v, v);
    printf("[%e] [%.3E] [%g] [%G] [%.10g] [%#g]\n", v, v, v, v, v, v);
    printf("[%f] [%g] [%5.1f] [%08f] [%a]\n", w / zero, -w / zero, zero / zero, w / zero, 1.0);
    printf("[%s] [%10s] [%-10s] [%.3s] [%f%s]\n", "text", "text", "text", "text", w, " after");
}

extern "C" __global__ void shapes(float size) {
    Square s(size);
    Circle c(size);
    const Shape* shape = threadIdx.x % 2 ? (const Shape*)&c : (const Shape*)&s;
    if (threadIdx.x < 2) printf("%s of %g: %g\n", shape->name(), size, shape->area());
}

extern "C" __global__ void gives_up(const int* x, int limit) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (x[i] > limit) {
        printf("x[%d] is %d\n", i, x[i]);
        assert(x[i] <= limit);
    }
}
