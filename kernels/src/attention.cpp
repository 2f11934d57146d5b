// attention: softmax(q k^T) v over a key-value cache, by absolute position (NUMERICS.md, section 6).
//
// Invariant: a row's bits depend on its own position and the keys it sees. A tile takes neighbouring rows of one
// key-value head's group; rows of a tile may see different keys: what a row does not see enters its chains as e = +0,
// which changes no total (section 10), and is left out of its maximum.
#include "elementwise.hpp"
#include "kernels.hpp"
#include "reduce.hpp"
#include "tile.hpp"

namespace iso::ISO_NS {

namespace {

size_t panels_of(size_t head_dim) { return (head_dim + PANEL - 1) / PANEL; }

size_t attention_tiles(size_t rows, size_t group) { return (rows * group + TILE_ROWS - 1) / TILE_ROWS; }

size_t attention_scratch(size_t capacity, size_t head_dim) {
    const size_t span = (capacity + BLOCK - 1) / BLOCK * BLOCK;
    return TILE_ROWS * (span + head_dim + BLOCK + panels_of(head_dim) * PANEL);
}

struct Row {
    size_t low, high;  // visible keys: low .. high - 1
    const float* q;
    float* out;
};

// s[key - first] of 32 keys for all rows of the tile.
void scores_of(const AttentionCall& call, const float* keys, const float* q, int rows, float* scores, size_t span) {
    alignas(64) float total[TILE_ROWS * PANEL];
    for (int i = 0; i < rows * PANEL; ++i) total[i] = 0.0f;
    for (size_t d = 0; d < call.head_dim; d += BLOCK)
        tile<float>(rows, q + d * rows, keys + d * PANEL, least(BLOCK, call.head_dim - d), total);
    for (int i = 0; i < rows * PANEL; ++i) total[i] = total[i] * call.scale;
    if (call.softcap != 0.0f) soft_cap(total, total, call.softcap, size_t(rows) * PANEL);
    for (int r = 0; r < rows; ++r) memcpy(scores + r * span, total + r * PANEL, PANEL * sizeof(float));
}

void attention_tile(const AttentionCall& call, size_t kv_head, size_t tile_index, float* scratch) {
    const size_t group = call.heads / call.kv_heads, dims = call.head_dim, panels = panels_of(dims);
    const size_t begin = tile_index * TILE_ROWS;
    const int rows = int(least(TILE_ROWS, call.rows * group - begin));

    Row row[TILE_ROWS];
    size_t low = SIZE_MAX, high = 0;
    for (int r = 0; r < rows; ++r) {
        const size_t m = (begin + r) / group, head = kv_head * group + (begin + r) % group;
        const size_t position = size_t(call.positions[m]);
        const size_t window = size_t(call.window);
        row[r].low = window && position + 1 > window ? position + 1 - window : 0;
        row[r].high = position + 1;
        row[r].q = call.q + m * call.q_stride + head * dims;
        row[r].out = call.out + m * call.out_stride + head * dims;
        if (row[r].low < low) low = row[r].low;
        if (row[r].high > high) high = row[r].high;
    }
    const size_t first = low / BLOCK * BLOCK, span = (high + BLOCK - 1) / BLOCK * BLOCK - first;
    float* scores = scratch;
    float* q = scores + rows * span;
    float* e = q + rows * dims;
    float* total = e + rows * BLOCK;

    for (size_t d = 0; d < dims; ++d)
        for (int r = 0; r < rows; ++r) q[d * rows + r] = row[r].q[d];
    const auto strip = [&](size_t page) {
        const size_t floats = call.pages[page].positions * (dims + panels * PANEL);
        return call.pages[page].data + (call.first_strip + kv_head) * floats;
    };
    for (size_t t = low / PANEL * PANEL; t < high; t += PANEL)
        scores_of(call, strip(t / BLOCK) + t % BLOCK * dims, q, rows, scores + (t - first), span);

    float denominator[TILE_ROWS];
    for (int r = 0; r < rows; ++r) {
        float* s = scores + r * span;
        const size_t from = row[r].low - first, to = row[r].high - first;
        const float m = maximum(s + from, to - from);
        exp_of_difference(s + from, m, s + from, to - from);
        memset(s, 0, from * sizeof(float));
        memset(s + to, 0, (span - to) * sizeof(float));
        denominator[r] = block_sums(s, span);  // +0 lanes are the identity: e is never -0
    }

    for (size_t i = 0; i < rows * panels * PANEL; ++i) total[i] = 0.0f;
    for (size_t block = first; block < high; block += BLOCK) {
        const size_t from = block < low ? low : block, to = least(block + BLOCK, high);
        for (size_t t = from; t < to; ++t)
            for (int r = 0; r < rows; ++r) e[(t - from) * rows + r] = scores[r * span + (t - first)];
        const size_t positions = call.pages[block / BLOCK].positions;
        const float* values = strip(block / BLOCK) + positions * dims;
        for (size_t p = 0; p < panels; ++p)
            tile<float>(rows, e, values + (p * positions + from - block) * PANEL, to - from, total + p * rows * PANEL);
    }
    for (int r = 0; r < rows; ++r)
        for (size_t d = 0; d < dims; ++d)
            row[r].out[d] = total[(d / PANEL * rows + r) * PANEL + d % PANEL] / denominator[r];
}

}  // namespace

void fill_attention(Kernels& table) {
    table.attention_tiles = attention_tiles;
    table.attention_scratch = attention_scratch;
    table.attention_tile = attention_tile;
}

}  // namespace iso::ISO_NS
