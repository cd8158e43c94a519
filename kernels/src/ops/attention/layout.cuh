// Who works on what: shapes, heads in memory, blocks' tasks.
#pragma once

constexpr float LOG2_E = 1.44269504088896341f, LN_2 = 0.693147180559945309f;

#define MINUS_INFINITY (-__int_as_float(0x7f800000))

// Shared memory, as much as the launch asks for.
extern __shared__ __align__(128) unsigned char dynamic[];

struct Shape {
    int tokens;          // of a sequence
    int heads, kv_heads; // of the queries, of the keys and values
    int features;        // of a head
    int window;          // keys that a query sees at most, no more than tokens
    float scale;         // above 0: the largest score is then that of the largest product
};

// Query i sees key j: i − window < j ≤ i.
__device__ inline bool is_visible(int query, int key, int window) { return unsigned(query - key) < unsigned(window); }

// A block's work: a tile of tokens, of one head of one sequence. Neighbouring blocks have the same tile, of neighbouring
// heads: those that share keys and values run together, and all blocks of a tile take as long.
struct Task {
    int tile, head, sequence;

    __device__ Task(int block, int heads, int tiles) {
        const int pairs = int(gridDim.x) / tiles;
        tile = block / pairs, sequence = block % pairs / heads, head = block % heads;
    }
};

// Where the statistics of a task's queries start, in `[B, H, T]`.
__device__ inline size_t statistics(const Shape& shape, int sequence, int head) {
    return (size_t(sequence) * shape.heads + head) * shape.tokens;
}

// One head of one sequence, in a matrix of `heads` of them: token t starts at data + t·stride.
template <class T> struct Head {
    T* data;
    unsigned stride;
    int tokens, features;

    __device__ Head(T* matrix, const Shape& shape, int heads, int sequence, int head)
        : data(matrix + (size_t(sequence) * shape.tokens * heads + head) * shape.features),
          stride(unsigned(heads) * shape.features), tokens(shape.tokens), features(shape.features) {}

    // From a chunk of a token on.
    __device__ T* at(int token, int feature) const { return data + size_t(unsigned(token)) * stride + feature; }
};
