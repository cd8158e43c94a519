// Threads that part and meet: loops of different length, early returns, breaks from nested loops, work that warps share
// out by ballots, and warps with different jobs that meet at barriers of their own.

extern "C" __global__ void collatz(const unsigned* x, unsigned* steps, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned long long v = x[i];
    unsigned count = 0;
    while (v > 1) {
        v = v & 1 ? 3 * v + 1 : v / 2;
        count++;
    }
    steps[i] = count;
}

extern "C" __global__ void mandelbrot(unsigned char* out, int width, int height) {
    int px = blockIdx.x * blockDim.x + threadIdx.x, py = blockIdx.y * blockDim.y + threadIdx.y;
    if (px >= width || py >= height) return;
    float cx = -2.0f + 3.0f * px / width, cy = -1.2f + 2.4f * py / height, x = 0, y = 0;
    int i = 0;
    for (; i < 100 && x * x + y * y < 4.0f; i++) {
        float t = x * x - y * y + cx;
        y = 2 * x * y + cy;
        x = t;
    }
    out[py * width + px] = i;
}

// The first pair of different indices whose numbers add up to the target.
extern "C" __global__ void search(const int* x, int n, const int* targets, int2* found) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    int target = targets[t];
    found[t] = make_int2(-1, -1);
    for (int i = 0; i < n; i++)
        for (int j = i + 1; j < n; j++)
            if (x[i] + x[j] == target) {
                found[t] = make_int2(i, j);
                goto done;
            }
done:
    __syncwarp();
}

// Warps 0 and 1 fill a buffer that warps 2 and 3 empty; barriers 1 and 2 say "full" and "empty".
extern "C" __global__ void pipeline(const int* in, int* out, int rounds) {
    __shared__ int buffer[64];
    int t = threadIdx.x % 64;
    if (threadIdx.x < 64) {
        for (int r = 0; r < rounds; r++) {
            if (r > 0) asm volatile("bar.sync 2, 128;" ::: "memory");
            buffer[t] = in[r * 64 + t] * 2;
            asm volatile("bar.arrive 1, 128;" ::: "memory");
        }
    } else {
        for (int r = 0; r < rounds; r++) {
            asm volatile("bar.sync 1, 128;" ::: "memory");
            out[r * 64 + t] = buffer[63 - t] + 1;
            if (r + 1 < rounds) asm volatile("bar.arrive 2, 128;" ::: "memory");
        }
    }
}

extern "C" __global__ void votes(const int* x, unsigned* out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int v = x[i];
    unsigned r = 0;
    if (__any_sync(0xffffffffu, v < 0)) r |= 1;
    if (__all_sync(0xffffffffu, v > -100)) r |= 2;
    int sum = __reduce_add_sync(0xffffffffu, v), least = __reduce_min_sync(0xffffffffu, v);
    int pred;
    unsigned same = __match_all_sync(0xffffffffu, v / 1000, &pred);
    int swapped = __shfl_xor_sync(0xffffffffu, v, 5, 16);
    out[i] = r + (unsigned)sum * 16 + (unsigned)least * 7 + same + pred + (unsigned)swapped;
}
