// BLAKE3 in its plain hash mode, as specified in "BLAKE3: one function, fast everywhere" (O'Connor, Aumasson, Neves,
// Wilcox-O'Hearn), sections 2.1 to 2.6 and 5.3: as many chunks, and then parents, side by side as a register has lanes.
//
// Invariant: the digest is BLAKE3's; the tree's shape follows from the length alone.
#include "kernels.hpp"
#include "simd.hpp"

namespace iso::ISO_NS {

namespace {

enum : uint32_t { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8 };
enum : size_t { BLOCK_BYTES = 64, CHUNK_BYTES = 1024 };

typedef uint32_t W __attribute__((vector_size(4 * LANES)));  // one word of LANES inputs

constexpr uint32_t IV[8] = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};

// The message permutation applied round by round.
constexpr uint8_t SCHEDULE[7][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
    {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1}, {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
    {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4}, {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
    {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13},
};

template <typename T>
inline T rotate(T x, int n) {
    return (x >> n) | (x << (32 - n));
}

template <typename T>
inline void mix(T* s, int a, int b, int c, int d, T x, T y) {
    s[a] = s[a] + s[b] + x;
    s[d] = rotate<T>(s[d] ^ s[a], 16);
    s[c] = s[c] + s[d];
    s[b] = rotate<T>(s[b] ^ s[c], 12);
    s[a] = s[a] + s[b] + y;
    s[d] = rotate<T>(s[d] ^ s[a], 8);
    s[c] = s[c] + s[d];
    s[b] = rotate<T>(s[b] ^ s[c], 7);
}

// cv := compress(cv, m, ...), T a word or a vector of words; counter as two words.
template <typename T>
inline void compress(T cv[8], const T m[16], T low, T high, T length, T flags) {
    const T zero = low ^ low;
    T s[16] = {cv[0], cv[1], cv[2], cv[3], cv[4], cv[5], cv[6], cv[7], IV[0] + zero, IV[1] + zero, IV[2] + zero,
               IV[3] + zero, low, high, length, flags};
#pragma GCC unroll 7
    for (int round = 0; round < 7; ++round) {
        const uint8_t* p = SCHEDULE[round];
        mix<T>(s, 0, 4, 8, 12, m[p[0]], m[p[1]]);
        mix<T>(s, 1, 5, 9, 13, m[p[2]], m[p[3]]);
        mix<T>(s, 2, 6, 10, 14, m[p[4]], m[p[5]]);
        mix<T>(s, 3, 7, 11, 15, m[p[6]], m[p[7]]);
        mix<T>(s, 0, 5, 10, 15, m[p[8]], m[p[9]]);
        mix<T>(s, 1, 6, 11, 12, m[p[10]], m[p[11]]);
        mix<T>(s, 2, 7, 8, 13, m[p[12]], m[p[13]]);
        mix<T>(s, 3, 4, 9, 14, m[p[14]], m[p[15]]);
    }
    for (int i = 0; i < 8; ++i) cv[i] = s[i] ^ s[i + 8];
}

inline uint32_t word_at(const uint8_t* p) {  // little-endian
    return uint32_t(p[0]) | uint32_t(p[1]) << 8 | uint32_t(p[2]) << 16 | uint32_t(p[3]) << 24;
}

struct Value {
    uint32_t word[8];
};

// The last, perhaps short, chunk; flags are ROOT where it is the whole input.
Value one_chunk(const uint8_t* data, size_t bytes, uint64_t index, uint32_t root) {
    uint32_t cv[8], m[16];
    for (int i = 0; i < 8; ++i) cv[i] = IV[i];
    size_t done = 0;
    do {
        const size_t length = least(BLOCK_BYTES, bytes - done);
        uint8_t block[BLOCK_BYTES] = {0};
        if (length) memcpy(block, data + done, length);
        for (int i = 0; i < 16; ++i) m[i] = word_at(block + 4 * i);
        const bool last = done + length == bytes;
        const uint32_t flags = (done ? 0u : CHUNK_START) | (last ? CHUNK_END | root : 0u);
        compress<uint32_t>(cv, m, uint32_t(index), uint32_t(index >> 32), uint32_t(length), flags);
        done += length;
    } while (done < bytes);
    Value v;
    for (int i = 0; i < 8; ++i) v.word[i] = cv[i];
    return v;
}

Value parent(const Value& left, const Value& right, uint32_t root) {
    uint32_t cv[8], m[16];
    for (int i = 0; i < 8; ++i) cv[i] = IV[i], m[i] = left.word[i], m[i + 8] = right.word[i];
    compress<uint32_t>(cv, m, 0, 0, BLOCK_BYTES, PARENT | root);
    Value v;
    for (int i = 0; i < 8; ++i) v.word[i] = cv[i];
    return v;
}

inline W all(uint32_t x) { return W{} + x; }

// LANES whole chunks side by side.
void whole_chunks(const uint8_t* data, uint64_t index, Value* out) {
    W cv[8], m[16], low, high;
    for (int i = 0; i < 8; ++i) cv[i] = all(IV[i]);
    for (int lane = 0; lane < LANES; ++lane) {
        low[lane] = uint32_t(index + lane);
        high[lane] = uint32_t((index + lane) >> 32);
    }
    for (size_t block = 0; block < CHUNK_BYTES; block += BLOCK_BYTES) {
        uint32_t words[16][LANES];
        for (int lane = 0; lane < LANES; ++lane) {
            const uint8_t* p = data + lane * CHUNK_BYTES + block;
            for (int i = 0; i < 16; ++i) words[i][lane] = word_at(p + 4 * i);
        }
        memcpy(m, words, sizeof m);
        const uint32_t flags = (block ? 0u : CHUNK_START) | (block + BLOCK_BYTES == CHUNK_BYTES ? CHUNK_END : 0u);
        compress<W>(cv, m, low, high, all(BLOCK_BYTES), all(flags));
    }
    for (int lane = 0; lane < LANES; ++lane)
        for (int i = 0; i < 8; ++i) out[lane].word[i] = cv[i][lane];
}

// LANES parents of 2 * LANES neighbouring values.
void parents(const Value* children, Value* out) {
    W cv[8], m[16];
    for (int i = 0; i < 8; ++i) cv[i] = all(IV[i]);
    for (int lane = 0; lane < LANES; ++lane)
        for (int i = 0; i < 16; ++i) m[i][lane] = children[2 * lane + i / 8].word[i % 8];
    compress<W>(cv, m, all(0), all(0), all(BLOCK_BYTES), all(PARENT));
    for (int lane = 0; lane < LANES; ++lane)
        for (int i = 0; i < 8; ++i) out[lane].word[i] = cv[i][lane];
}

// A tree of `count` values level by level: neighbours pair up, an odd last one moves up unchanged, which is BLAKE3's
// rule (the left subtree is the greatest power of two below the size). The root is left to the caller: two values remain.
size_t reduce_to_two(Value* values, size_t count) {
    while (count > 2) {
        const size_t pairs = count / 2;
        size_t i = 0;
        for (; i + LANES <= pairs; i += LANES) {
            Value level[LANES];
            parents(values + 2 * i, level);
            memcpy(values + i, level, sizeof level);
        }
        for (; i < pairs; ++i) values[i] = parent(values[2 * i], values[2 * i + 1], 0);
        if (count % 2) values[pairs] = values[count - 1];
        count = pairs + count % 2;
    }
    return count;
}

// The value of a subtree of at most SUBTREE chunks (a power of two, or the input's end); never the root.
enum : size_t { SUBTREE = 256 };

size_t leaves(const uint8_t* data, size_t bytes, uint64_t index, Value* values) {
    const size_t whole = (bytes - 1) / CHUNK_BYTES;  // the last chunk, even if full, is hashed singly
    size_t i = 0;
    for (; i + LANES <= whole; i += LANES) whole_chunks(data + i * CHUNK_BYTES, index + i, values + i);
    for (; i <= whole; ++i)
        values[i] = one_chunk(data + i * CHUNK_BYTES, least(CHUNK_BYTES, bytes - i * CHUNK_BYTES), index + i, 0);
    return whole + 1;
}

void write(const Value& v, uint8_t digest[32]) {
    for (int i = 0; i < 8; ++i)
        for (int b = 0; b < 4; ++b) digest[4 * i + b] = uint8_t(v.word[i] >> (8 * b));
}

void blake3(const uint8_t* data, size_t bytes, uint8_t digest[32]) {
    if (bytes <= CHUNK_BYTES) return write(one_chunk(data, bytes, 0, ROOT), digest);
    Value values[SUBTREE];
    const size_t span = SUBTREE * CHUNK_BYTES;
    if (bytes <= span) {
        reduce_to_two(values, leaves(data, bytes, 0, values));
        return write(parent(values[0], values[1], ROOT), digest);
    }
    // Longer inputs: subtrees of SUBTREE chunks, merged on a stack as their number's trailing zero bits say.
    Value stack[64];
    size_t height = 0;
    uint64_t done = 0;
    for (; bytes > span; data += span, bytes -= span) {
        reduce_to_two(values, leaves(data, span, done * SUBTREE, values));
        Value v = parent(values[0], values[1], 0);
        ++done;
        for (uint64_t n = done; !(n & 1); n >>= 1) v = parent(stack[--height], v, 0);
        stack[height++] = v;
    }
    const size_t count = reduce_to_two(values, leaves(data, bytes, done * SUBTREE, values));
    Value v = count == 1 ? values[0] : parent(values[0], values[1], 0);
    while (height > 1) v = parent(stack[--height], v, 0);
    write(parent(stack[0], v, ROOT), digest);
}

}  // namespace

void fill_blake3(Kernels& table) { table.blake3 = blake3; }

}  // namespace iso::ISO_NS
