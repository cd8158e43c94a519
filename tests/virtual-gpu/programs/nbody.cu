// One step of n bodies that attract each other: a tile of bodies at a time in shared memory.

constexpr int TILE = 128;

extern "C" __global__ void accelerations(const float4* bodies, float4* out, int n, float softening) {
    __shared__ float4 tile[TILE];
    int i = blockIdx.x * TILE + threadIdx.x;
    float4 me = i < n ? bodies[i] : make_float4(0, 0, 0, 0);
    float3 a = make_float3(0, 0, 0);
    for (int base = 0; base < n; base += TILE) {
        int j = base + threadIdx.x;
        tile[threadIdx.x] = j < n ? bodies[j] : make_float4(0, 0, 0, 0);
        __syncthreads();
#pragma unroll 8
        for (int k = 0; k < TILE; k++) {
            float4 other = tile[k];
            float dx = other.x - me.x, dy = other.y - me.y, dz = other.z - me.z;
            float inverse = rsqrtf(dx * dx + dy * dy + dz * dz + softening);
            float scale = other.w * inverse * inverse * inverse;
            a.x += dx * scale;
            a.y += dy * scale;
            a.z += dz * scale;
        }
        __syncthreads();
    }
    if (i < n) out[i] = make_float4(a.x, a.y, a.z, 0);
}
