// Selection for pruning: all but the k smallest magnitudes, of a matrix or of each row; n of every m; and counts.
//
// Entries are compared as they lie: bf16, f16 or f32, their sign cleared, are integers in the order of the magnitudes
// ("keys", of 15 or 31 bits), so no matrix of scores is formed and the float types of one width share their kernels.
//
// The k-th smallest key is found digit by digit from its highest bits (a radix select), in digits of 11 bits: two rounds of
// 16-bit keys, three of 32-bit ones. A round reads the matrix once and counts the next digit of the keys that begin like
// the k-th: each block in shared memory, then into 64-bit bins of global memory, both by integer atomics, whose order
// changes nothing. One block then finds the digit; it stays on the device, where the next round reads it. The host waits
// for nothing.
//
// Of equal keys the lower index goes first, so what is left to find is one index: entries at the threshold go before it
// and stay from it on. The last round keeps the counts of each chunk of the matrix, which tell the chunk that the index
// lies in, and one block searches that chunk. The mask then depends on each entry and its index alone.
//
// Bytes for n entries of e bytes: n·e for each round and for the mask, n/8 for the mask itself. Beside them: a table of the
// last digit's counts for each chunk (at least 16,384 entries: 64 bytes of 32 KiB, or 2 KiB of 64 KiB), of which one sector
// a chunk is read again; the chunk that is searched.
//
// Rows are selected by a block each, which leaves a threshold for the kernel that makes the mask. A row of at most 48 KiB is
// copied to shared memory and read there in every round: n·e bytes of all rows, and 32 a row for its threshold. A longer one is
// read in each round and for its ties, through L2 (rows in flight are some ten MB).
//
// A warp makes 256 entries' mask at a time: 32 bytes, a whole sector.

#include "cuda/matrix.cuh"
#include "cuda/scan.cuh"

using u16 = unsigned short;
using u64 = unsigned long long;

constexpr int BINS = 1 << 11;
constexpr int MAX_THREADS = 1024; // of the kernels of one block
constexpr int THREADS = 256;      // of the others
constexpr int SWEEPS = 4;         // times 256 entries that a warp masks

// Where the removed end and the kept begin.
struct __align__(16) Threshold {
    u64 key;   // smaller ones go, larger ones stay
    u64 cut;   // those at the threshold go before this index
    u64 ties;  // how many of them go
    u64 equal; // of how many
};

// The bits of a key from `shift` up to `above`.
struct Digit {
    int above, shift;

    __device__ int bins() const { return 1 << (above - shift); }
};

// What is no entry: negative, so that it is larger than no key, and that no digit's prefix is its own.
constexpr unsigned ABSENT = 0xffffffff;

// The keys of 16 bytes of entries.
template <class T> struct Keys {
    static constexpr int COUNT = 16 / sizeof(T);
    unsigned at[COUNT];

    // Those of the entries from i on, a multiple of COUNT, that lie in begin … end of an array of `len`.
    __device__ void load(const T* values, u64 i, u64 begin, u64 end, u64 len) {
        constexpr unsigned MASK = (1u << (8 * sizeof(T) - 1)) - 1;
        if (i >= end) {
#pragma unroll
            for (int j = 0; j < COUNT; ++j) at[j] = ABSENT;
            return;
        }
        if (i + COUNT <= len) {
            const uint4 words = *reinterpret_cast<const uint4*>(values + i);
            const unsigned word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
            for (int j = 0; j < COUNT; ++j) {
                at[j] = (sizeof(T) == 2 ? word[j / 2] >> (j % 2 * 16) : word[j % 4]) & MASK;
            }
        } else {
#pragma unroll
            for (int j = 0; j < COUNT; ++j) at[j] = i + j < len ? values[i + j] & MASK : ABSENT;
        }
        if (i < begin || i + COUNT > end) {
#pragma unroll
            for (int j = 0; j < COUNT; ++j) {
                if (i + j < begin || i + j >= end) at[j] = ABSENT;
            }
        }
    }

    // Remembers the first entry, of those counted from `start` on, that is an infinity or not a number.
    __device__ void check(unsigned largest, u64 start, u64* unusable) const {
#pragma unroll
        for (int j = 0; j < COUNT; ++j) {
            if (int(at[j]) > int(largest)) atomicMin(unusable, start + j);
        }
    }
};

// Counts a digit of the keys in begin … end that begin with `prefix`. The first round checks them too.
template <class T>
__device__ void count(const T* values, u64 begin, u64 end, u64 len, Digit digit, unsigned prefix, unsigned* counts,
                      unsigned largest, u64 start, u64* unusable) {
    constexpr int COUNT = Keys<T>::COUNT, TOGETHER = 4;
    const unsigned low = digit.bins() - 1;
    const u64 step = u64(blockDim.x) * COUNT;
    for (u64 i = begin / COUNT * COUNT + threadIdx.x * COUNT; i < end; i += TOGETHER * step) {
        Keys<T> keys[TOGETHER];
#pragma unroll
        for (int t = 0; t < TOGETHER; ++t) keys[t].load(values, i + t * step, begin, end, len);
#pragma unroll
        for (int t = 0; t < TOGETHER; ++t) {
#pragma unroll
            for (int j = 0; j < COUNT; ++j) {
                const unsigned key = keys[t].at[j];
                if (key >> digit.above == prefix) atomicAdd(counts + (key >> digit.shift & low), 1);
            }
            if (unusable) keys[t].check(largest, start + i + t * step, unusable);
        }
    }
}

// Adds to a threshold's key the digit at which `ties` keys are reached; what is left of them is the new `ties`. Each warp
// adds up as many bins, and the one that has the digit looks for it.
template <class N> __device__ void choose(const N* counts, Digit digit, Threshold& threshold, u64 (&sums)[32]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int bins = digit.bins(), span = max(bins / warps, 32), first = warp * span, last = min(first + span, bins);
    u64 own = 0, total, left = threshold.ties;
    for (int bin = first + lane; bin < last; bin += 32) own += counts[bin];
    const u64 before = block_scan(own, total, sums), through = __shfl_sync(0xffffffff, before + own, 31);
    const u64 below = __shfl_sync(0xffffffff, before, 0);
    if (left == 0 ? warp > 0 : left <= below || through < left) return;
    left -= below;
    for (int bin = first + lane;; bin += 32) {
        const u64 count = bin < last ? counts[bin] : 0, reached = warp_scan(count);
        const bool here = left == 0 ? lane == 0 : reached - count < left && left <= reached;
        if (here) {
            threshold.key |= u64(bin) << digit.shift;
            threshold.ties = left - (reached - count), threshold.equal = count;
        }
        if (__any_sync(0xffffffff, here)) return;
        left -= __shfl_sync(0xffffffff, reached, 31);
    }
}

// The index behind the entry of begin … end that is the `ties`-th (from 1) at `key`; there are as many.
template <class T>
__device__ u64 locate(const T* values, u64 begin, u64 end, u64 len, unsigned key, u64 ties, u64 (&sums)[32]) {
    constexpr int COUNT = Keys<T>::COUNT;
    __shared__ u64 found;
    u64 base = begin / COUNT * COUNT, total;
    for (;; base += u64(blockDim.x) * COUNT) {
        const u64 i = base + threadIdx.x * COUNT;
        Keys<T> keys;
        keys.load(values, i, begin, end, len);
        u64 own = 0;
#pragma unroll
        for (int j = 0; j < COUNT; ++j) own += keys.at[j] == key;
        u64 before = block_scan(own, total, sums);
        if (total >= ties) {
#pragma unroll
            for (int j = 0; j < COUNT; ++j) {
                if (keys.at[j] == key && ++before == ties) found = i + j + 1;
            }
            __syncthreads();
            return found;
        }
        ties -= total;
    }
}

// One round over a matrix, chunk by chunk. `table` `[chunks, digit's bins]` is there in the last round, `unusable` in the
// first.
template <class T>
__device__ void histogram(const T* values, u64 len, u64 chunk, Digit digit, const Threshold* threshold, u64* bins,
                          unsigned* table, unsigned largest, u64 start, u64* unusable) {
    __shared__ unsigned counts[BINS];
    const unsigned prefix = threshold->key >> digit.above;
    const int size = digit.bins();
    const auto flush = [&](unsigned* to) {
        __syncthreads();
        for (int bin = threadIdx.x; bin < size; bin += THREADS) {
            const unsigned n = counts[bin];
            if (n > 0) atomicAdd(bins + bin, u64(n));
            if (to) to[bin] = n;
            counts[bin] = 0;
        }
        __syncthreads();
    };
    for (int bin = threadIdx.x; bin < size; bin += THREADS) counts[bin] = 0;
    __syncthreads();
    for (u64 c = blockIdx.x; c * chunk < len; c += gridDim.x) {
        count(values, c * chunk, min((c + 1) * chunk, len), len, digit, prefix, counts, largest, start, unusable);
        if (table) flush(table + c * size);
    }
    if (!table) flush(nullptr);
}

// Ends a round: the digit, and bins for the next one.
extern "C" __global__ __launch_bounds__(MAX_THREADS) void select_digit(u64* bins, Digit digit, Threshold* threshold) {
    __shared__ u64 sums[32];
    choose(bins, digit, *threshold, sums);
    __syncthreads();
    for (int bin = threadIdx.x; bin < digit.bins(); bin += MAX_THREADS) bins[bin] = 0;
}

// The cut of one piece: behind the last of the ties that are left, or behind the piece if it has no more than those.
template <class T>
__device__ void cut(const T* values, u64 len, u64 chunk, const unsigned* table, int bins, Threshold* threshold) {
    __shared__ u64 sums[32], where[2];
    const unsigned key = threshold->key;
    const u64 ties = threshold->ties, chunks = (len + chunk - 1) / chunk;
    u64 before = 0;
    bool found = false;
    for (u64 first = 0; ties > 0 && first < chunks && !found; first += MAX_THREADS) {
        const u64 c = first + threadIdx.x;
        const u64 own = c < chunks ? table[c * bins + (key & (bins - 1))] : 0;
        u64 total;
        const u64 here = before + block_scan(own, total, sums);
        if (here < ties && ties <= here + own) where[0] = c, where[1] = here;
        before += total;
        found = ties <= before;
    }
    __syncthreads();
    u64 index = ties > 0 ? len : 0;
    if (found) {
        const u64 begin = where[0] * chunk;
        index = locate(values, begin, min(begin + chunk, len), len, key, ties - where[1], sums);
    }
    if (threadIdx.x == 0) threshold->cut = index, threshold->ties = found ? 0 : ties - before;
}

// The threshold of one row, the entries `begin` to `end` of an array of `len` that is aligned to 16 bytes; `cut` counts columns.
// Entries are `start` further on in the matrix.
template <class T>
__device__ void row_threshold(const T* values, u64 begin, u64 end, u64 len, u64 k, unsigned largest, u64 start,
                              Threshold& result, u64* unusable) {
    __shared__ unsigned counts[BINS];
    __shared__ Threshold threshold;
    __shared__ u64 sums[32];
    if (threadIdx.x == 0) threshold = Threshold{0, 0, k, 0};
    Digit digit{0, 8 * sizeof(T) - 1};
    do {
        digit = Digit{digit.shift, max(digit.shift - 11, 0)};
        for (int bin = threadIdx.x; bin < digit.bins(); bin += THREADS) counts[bin] = 0;
        __syncthreads();
        const bool first = digit.above == 8 * sizeof(T) - 1;
        count(values, begin, end, len, digit, unsigned(threshold.key >> digit.above), counts, largest, start,
              first ? unusable : nullptr);
        __syncthreads();
        choose(counts, digit, threshold, sums);
        __syncthreads();
    } while (digit.shift > 0);
    u64 col = threshold.ties == 0 ? 0 : end - begin;
    if (0 < threshold.ties && threshold.ties < threshold.equal) {
        col = locate(values, begin, end, len, unsigned(threshold.key), threshold.ties, sums) - begin;
    }
    if (threadIdx.x == 0) {
        threshold.cut = col;
        result = threshold;
    }
}

// The thresholds of rows of `cols` entries, a block each. `copied`: there is shared memory for a row, from the 16 bytes in which
// it begins to those in which it ends.
template <class T>
__device__ void row_thresholds(const T* values, u64 rows, u64 cols, u64 k, unsigned largest, int copied, Threshold* thresholds,
                               u64* unusable) {
    extern __shared__ __align__(16) unsigned char row[];
    constexpr int COUNT = Keys<T>::COUNT;
    const u64 first = blockIdx.x * cols, base = first / COUNT * COUNT, len = rows * cols - base;
    const u64 begin = first - base, end = begin + cols;
    values += base;
    Threshold& result = thresholds[blockIdx.x];
    if (!copied) return row_threshold(values, begin, end, len, k, largest, base, result, unusable);
    for (u64 i = threadIdx.x * COUNT; i < end; i += THREADS * COUNT) {
        copy_async(shared_address(row) + unsigned(i) * sizeof(T), values + i, min(u64(COUNT), len - i) * sizeof(T));
    }
    copies_commit();
    copies_wait<0>();
    __syncthreads();
    const u64 whole = (end + COUNT - 1) / COUNT * COUNT;
    row_threshold(reinterpret_cast<const T*>(row), begin, end, whole, k, largest, base, result, unusable);
}

// Makes the mask of `len` entries: `keep(keys, i)` has a bit for each of the keys of the entries from i on, clear where it is
// absent. The mask is whole words of 64 bits.
template <class T, class Keep>
__device__ void sweep(const T* values, u64 len, unsigned char* mask, const Keep& keep) {
    constexpr int COUNT = Keys<T>::COUNT, PARTS = 8 / COUNT;
    const u64 bytes = (len + 63) / 64 * 8;
    const int lane = threadIdx.x % 32;
    const u64 warp = (u64(blockIdx.x) * THREADS + threadIdx.x) / 32;
#pragma unroll
    for (int s = 0; s < SWEEPS; ++s) {
        const u64 base = (warp * SWEEPS + s) * 256;
        if (base / 8 >= bytes) return;
        unsigned bits[PARTS];
#pragma unroll
        for (int p = 0; p < PARTS; ++p) {
            const u64 i = base + (p * 32 + lane) * COUNT;
            Keys<T> keys;
            keys.load(values, i, 0, len, len);
            bits[p] = keep(keys, i);
        }
        int place = lane;
        unsigned byte = bits[0];
        if constexpr (PARTS == 2) {
            // Two neighbours have four bits each of the same bytes: one sends its second four, the other its first.
            const unsigned other = __shfl_xor_sync(0xffffffff, lane % 2 ? bits[0] : bits[1], 1);
            byte = lane % 2 ? other | bits[1] << 4 : bits[0] | other << 4;
            place = lane % 2 * 16 + lane / 2;
        }
        if (base / 8 + place < bytes) mask[base / 8 + place] = byte;
    }
}

// Rows of `cols` entries, each with its threshold.
template <class T>
__device__ void mark(const T* values, u64 len, u64 cols, const Threshold* thresholds, unsigned char* mask) {
    u64 known = ~u64(0), from = 0;
    int key = 0;
    sweep(values, len, mask, [&](const Keys<T>& keys, u64 i) {
        if (i >= len) return 0u;
        u64 row = cols < len ? i / cols : 0, col = i - row * cols;
        const auto look_up = [&] {
            if (row == known) return;
            const ulonglong2 threshold = *reinterpret_cast<const ulonglong2*>(thresholds + row);
            known = row, key = threshold.x, from = threshold.y;
        };
        look_up();
        unsigned bits = 0;
#pragma unroll
        for (int j = 0; j < Keys<T>::COUNT; ++j) {
            const int at = keys.at[j];
            bits |= unsigned(at > key || (at == key && col >= from)) << j;
            if (++col == cols && i + j + 1 < len) {
                ++row, col = 0;
                look_up();
            }
        }
        return bits;
    });
}

// n of every M, where a vector holds whole groups: an entry stays if fewer than n outlast it, which are the larger ones, and
// equals at a higher index.
template <class T, int M>
__device__ void n_of_m(const T* values, u64 len, int n, unsigned largest, unsigned char* mask, u64* unusable) {
    static_assert(Keys<T>::COUNT % M == 0, "whole groups");
    sweep(values, len, mask, [&](const Keys<T>& keys, u64 i) {
        keys.check(largest, i, unusable);
        unsigned bits = 0;
#pragma unroll
        for (int j = 0; j < Keys<T>::COUNT; ++j) {
            int stronger = 0;
#pragma unroll
            for (int other = j / M * M; other < j / M * M + M; ++other) {
                if (other != j) stronger += other < j ? keys.at[other] > keys.at[j] : keys.at[other] >= keys.at[j];
            }
            bits |= unsigned(keys.at[j] != ABSENT && stronger < n) << j;
        }
        return bits;
    });
}

// n of every m ≤ 32, any m: a block takes 256 groups through shared memory, a thread compares one entry at a time. Lanes of
// one group read the same word, those of others words that are no multiple of 32 away: no bank is asked for two. Words of the
// mask are gathered, and written in whole sectors.
template <class T>
__device__ void n_of_any(const T* values, u64 len, int n, int m, unsigned largest, unsigned* mask, u64* unusable) {
    constexpr int COUNT = Keys<T>::COUNT;
    __shared__ __align__(16) unsigned tile[THREADS * 32];
    __shared__ unsigned kept[THREADS];
    const u64 base = u64(blockIdx.x) * THREADS * m, words = (len + 63) / 64 * 2;
    for (int i = threadIdx.x * COUNT; i < THREADS * m; i += THREADS * COUNT) {
        Keys<T> keys;
        keys.load(values, base + i, 0, len, len);
        keys.check(largest, base + i, unusable);
        // Of eight lanes with eight keys each four begin with their second four, or two would ask for the same banks.
        const bool later = COUNT == 8 && threadIdx.x / 4 % 2;
#pragma unroll
        for (int j = 0; j < COUNT; j += 4) {
            const int other = COUNT - 4 - j;
            const uint4 early = make_uint4(keys.at[j], keys.at[j + 1], keys.at[j + 2], keys.at[j + 3]);
            const uint4 late = make_uint4(keys.at[other], keys.at[other + 1], keys.at[other + 2], keys.at[other + 3]);
            *reinterpret_cast<uint4*>(tile + i + (later ? other : j)) = later ? late : early;
        }
    }
    __syncthreads();
    for (int e = threadIdx.x; e < THREADS * m; e += THREADS) {
        const int first = e / m * m;
        const unsigned key = tile[e];
        int stronger = 0;
        for (int other = first; other < first + m; ++other) {
            if (other != e) stronger += other < e ? tile[other] > key : tile[other] >= key;
        }
        const unsigned bits = __ballot_sync(0xffffffff, key != ABSENT && stronger < n);
        if (threadIdx.x % 32 == 0) kept[e / 32] = bits;
    }
    __syncthreads();
    const u64 word = base / 32 + threadIdx.x;
    if (threadIdx.x < THREADS * m / 32 && word < words) mask[word] = kept[threadIdx.x];
}

#define SELECT(NAME, T)                                                                                                  \
    extern "C" __global__ __launch_bounds__(THREADS) void select_histogram_##NAME(                                       \
        const T* __restrict__ values, u64 len, u64 chunk, Digit digit, const Threshold* __restrict__ threshold,          \
        u64* bins, unsigned* __restrict__ table, unsigned largest, u64 start, u64* unusable) {                           \
        histogram(values, len, chunk, digit, threshold, bins, table, largest, start, unusable);                          \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(MAX_THREADS) void select_cut_##NAME(                                         \
        const T* __restrict__ values, u64 len, u64 chunk, const unsigned* __restrict__ table, int bins,                  \
        Threshold* threshold) {                                                                                          \
        cut(values, len, chunk, table, bins, threshold);                                                                 \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(THREADS) void select_rows_##NAME(                                            \
        const T* __restrict__ values, u64 rows, u64 cols, u64 k, unsigned largest, int copied,                           \
        Threshold* __restrict__ thresholds, u64* unusable) {                                                             \
        row_thresholds(values, rows, cols, k, largest, copied, thresholds, unusable);                                    \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(THREADS) void select_mark_##NAME(                                            \
        const T* __restrict__ values, u64 len, u64 cols, const Threshold* __restrict__ thresholds,                       \
        unsigned char* __restrict__ mask) {                                                                              \
        mark(values, len, cols, thresholds, mask);                                                                       \
    }                                                                                                                    \
    extern "C" __global__ __launch_bounds__(THREADS) void select_n_of_any_##NAME(                                        \
        const T* __restrict__ values, u64 len, int n, int m, unsigned largest, unsigned* __restrict__ mask,              \
        u64* unusable) {                                                                                                 \
        n_of_any(values, len, n, m, largest, mask, unusable);                                                            \
    }

SELECT(16, u16)
SELECT(32, unsigned)

#define N_OF_M(NAME, T, M)                                                                                               \
    extern "C" __global__ __launch_bounds__(THREADS) void select_n_of_##M##_##NAME(                                      \
        const T* __restrict__ values, u64 len, int n, unsigned largest, unsigned char* __restrict__ mask,                \
        u64* unusable) {                                                                                                 \
        n_of_m<T, M>(values, len, n, largest, mask, unusable);                                                           \
    }

N_OF_M(16, u16, 4)
N_OF_M(16, u16, 8)
N_OF_M(32, unsigned, 4)

// total += the bits that are set in `words`, of which there are `len`.
extern "C" __global__ __launch_bounds__(THREADS) void select_count(const u64* __restrict__ words, u64 len, u64* total) {
    __shared__ u64 sums[32];
    u64 own = 0, all;
    for (u64 i = 2 * (u64(blockIdx.x) * THREADS + threadIdx.x); i < len; i += 2 * u64(gridDim.x) * THREADS) {
        if (i + 1 < len) {
            const ulonglong2 pair = *reinterpret_cast<const ulonglong2*>(words + i);
            own += __popcll(pair.x) + __popcll(pair.y);
        } else {
            own += __popcll(words[i]);
        }
    }
    block_scan(own, all, sums);
    if (threadIdx.x == 0 && all > 0) atomicAdd(total, all);
}
