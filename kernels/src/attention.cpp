// attention: softmax(q k^T) v over a key-value cache, by absolute position (NUMERICS.md, section 6).
//
// Invariant: a row's bits depend on its own position and the keys it sees. A tile takes neighbouring rows of one
// key-value head's group; rows of a tile may see different keys: what a row does not see enters its chains as e = +0,
// which changes no total (section 10), and is left out of its maximum.
//
// Blocks of 256 keys meet twice only, in a row's maximum, which is exact, and in the sums over blocks, which ascend. So
// a tile's blocks may be taken by several threads: begin; scores of each block; values of each block; finish.
#include "elementwise.hpp"
#include "kernels.hpp"
#include "reduce.hpp"
#include "tile.hpp"

namespace iso::ISO_NS {

namespace {

size_t panels_of(size_t head_dim) { return (head_dim + PANEL - 1) / PANEL; }

size_t attention_tiles(size_t rows, size_t group) { return (rows * group + TILE_ROWS - 1) / TILE_ROWS; }

// Floats of a block's record, and of a tile's state: the queries, interleaved, then a record a block.
size_t record_of(size_t rows, size_t head_dim) { return rows * (BLOCK + panels_of(head_dim) * PANEL + 2); }

size_t attention_scratch(size_t capacity, size_t head_dim) {
    return TILE_ROWS * head_dim + (capacity + BLOCK - 1) / BLOCK * record_of(TILE_ROWS, head_dim);
}

constexpr float NOTHING = -__builtin_inff();

struct Row {
    size_t low, high;  // visible keys: low .. high - 1
    const float* q;
    float* out;
};

struct Tile {
    const AttentionCall& call;
    size_t kv_head, low, high;  // keys that any row sees
    int rows;
    float* state;
    Row row[TILE_ROWS];

    Tile(const AttentionCall& c, size_t head, size_t index, float* s) : call(c), kv_head(head), state(s) {
        const size_t group = c.heads / c.kv_heads, begin = index * TILE_ROWS, dims = c.head_dim;
        rows = int(least(TILE_ROWS, c.rows * group - begin));
        low = SIZE_MAX, high = 0;
        size_t m = begin / group, of_group = begin % group;
        for (int r = 0; r < rows; ++r) {
            const size_t position = size_t(c.positions[m]), window = size_t(c.window), head_of_row = head * group + of_group;
            row[r] = Row{window && position + 1 > window ? position + 1 - window : 0, position + 1,
                         c.q + m * c.q_stride + head_of_row * dims, c.out + m * c.out_stride + head_of_row * dims};
            if (row[r].low < low) low = row[r].low;
            if (row[r].high > high) high = row[r].high;
            if (++of_group == group) of_group = 0, ++m;
        }
    }

    size_t first() const { return low / BLOCK; }
    size_t past() const { return (high + BLOCK - 1) / BLOCK; }
    size_t panels() const { return panels_of(call.head_dim); }

    float* q() const { return state; }
    float* scores(size_t block) const {  // [rows][BLOCK], then e
        return state + rows * call.head_dim + (block - first()) * record_of(rows, call.head_dim);
    }
    float* totals(size_t block) const { return scores(block) + rows * BLOCK; }  // [panel][rows][PANEL]
    float* tops(size_t block) const { return totals(block) + panels() * rows * PANEL; }
    float* sums(size_t block) const { return tops(block) + rows; }

    const float* strip(size_t block) const {
        const CachePage& page = call.pages[block];
        return page.data + (call.first_strip + kv_head) * page.positions * (call.head_dim + panels() * PANEL);
    }

    void begin() const {
        for (int r = 0; r < rows; ++r)
            for (size_t d = 0; d < call.head_dim; ++d) q()[d * rows + r] = row[r].q[d];
    }

    // Keys of a block that any row sees, counted from the block's start; `even`: whole groups of 32.
    struct Span {
        size_t from, to, even_from, even_to;
    };
    Span span(size_t block) const {
        const size_t start = block * BLOCK, from = start < low ? low - start : 0, to = least(high - start, BLOCK);
        return {from, to, from / PANEL * PANEL, (to + PANEL - 1) / PANEL * PANEL};
    }
    static size_t within(size_t position, size_t start, size_t bound) {
        return position < start ? 0 : least(position - start, bound);
    }

    void tile_scores(size_t block) const {
        const Span keys = span(block);
        const size_t dims = call.head_dim;
        float* const s = scores(block);
        for (size_t t = keys.even_from; t < keys.even_to; t += PANEL)
            for (size_t d = 0; d < dims; d += BLOCK)
                tile<float>(rows, q() + d * rows, strip(block) + t * dims + d * PANEL, least(BLOCK, dims - d),
                            Ending{d ? s + t : nullptr, BLOCK, s + t, BLOCK, nullptr, nullptr});
        for (int r = 0; r < rows; ++r) {
            float* x = s + r * BLOCK;
            for (size_t t = keys.even_from; t < keys.even_to; ++t) x[t] = x[t] * call.scale;
            if (call.softcap != 0.0f) soft_cap(x + keys.even_from, x + keys.even_from, call.softcap, keys.even_to - keys.even_from);
            const size_t from = within(row[r].low, block * BLOCK, BLOCK), to = within(row[r].high, block * BLOCK, BLOCK);
            tops(block)[r] = from < to ? maximum(x + from, to - from) : NOTHING;
        }
    }

    void tile_values(size_t block) const {
        const Span keys = span(block);
        float* const s = scores(block);
        for (int r = 0; r < rows; ++r) {
            float* x = s + r * BLOCK;
            const size_t from = within(row[r].low, block * BLOCK, keys.even_to), to = within(row[r].high, block * BLOCK, keys.even_to);
            if (from >= to) {
                for (size_t t = keys.even_from; t < keys.even_to; ++t) x[t] = 0.0f;
                sums(block)[r] = 0.0f;
                continue;
            }
            float top = tops(first())[r];
            for (size_t b = first() + 1; b < past(); ++b) top = tops(b)[r] > top ? tops(b)[r] : top;
            exp_of_difference(x + from, top, x + from, to - from);
            for (size_t t = keys.even_from; t < from; ++t) x[t] = 0.0f;
            for (size_t t = to; t < keys.even_to; ++t) x[t] = 0.0f;
            // Lanes without a key hold +0, which is the identity: e is never -0.
            sums(block)[r] = row_sum_of(x + keys.even_from, keys.even_to - keys.even_from, Plain{});
        }
        alignas(64) float e[TILE_ROWS * BLOCK];
        interleave(s + keys.even_from, BLOCK, size_t(rows), keys.even_to - keys.even_from, e);
        const size_t room = call.pages[block].positions;
        const float* values = strip(block) + room * call.head_dim + keys.from * PANEL;
        for (size_t p = 0; p < panels(); ++p)
            tile<float>(rows, e + (keys.from - keys.even_from) * rows, values + p * room * PANEL, keys.to - keys.from,
                        Ending{nullptr, 0, totals(block) + p * rows * PANEL, PANEL, nullptr, nullptr});
    }

    void finish() const {
        for (int r = 0; r < rows; ++r) {
            float sum = 0.0f;
            for (size_t b = first(); b < past(); ++b) sum = sum + sums(b)[r];
            for (size_t p = 0; p < panels(); ++p) {
                alignas(64) float total[PANEL];
                for (int i = 0; i < PANEL; ++i) total[i] = 0.0f;
                for (size_t b = first(); b < past(); ++b) {
                    const float* part = totals(b) + (p * rows + r) * PANEL;
                    for (int i = 0; i < PANEL; ++i) total[i] = total[i] + part[i];
                }
                for (int i = 0; i < PANEL; ++i) total[i] = total[i] / sum;
                memcpy(row[r].out + p * PANEL, total, least(PANEL, call.head_dim - p * PANEL) * sizeof(float));
            }
        }
    }
};

void attention_blocks(const AttentionCall& call, size_t tile_index, size_t* first, size_t* past) {
    const Tile t(call, 0, tile_index, nullptr);
    *first = t.first(), *past = t.past();
}

void attention_begin(const AttentionCall& call, size_t kv_head, size_t tile_index, float* state) {
    Tile(call, kv_head, tile_index, state).begin();
}

void attention_scores(const AttentionCall& call, size_t kv_head, size_t tile_index, size_t block, float* state) {
    Tile(call, kv_head, tile_index, state).tile_scores(block);
}

void attention_values(const AttentionCall& call, size_t kv_head, size_t tile_index, size_t block, float* state) {
    Tile(call, kv_head, tile_index, state).tile_values(block);
}

void attention_finish(const AttentionCall& call, size_t kv_head, size_t tile_index, float* state) {
    Tile(call, kv_head, tile_index, state).finish();
}

void attention_tile(const AttentionCall& call, size_t kv_head, size_t tile_index, float* state) {
    const Tile t(call, kv_head, tile_index, state);
    t.begin();
    for (size_t block = t.first(); block < t.past(); ++block) t.tile_scores(block);
    for (size_t block = t.first(); block < t.past(); ++block) t.tile_values(block);
    t.finish();
}

}  // namespace

void fill_attention(Kernels& table) {
    table.attention_tiles = attention_tiles;
    table.attention_scratch = attention_scratch;
    table.attention_tile = attention_tile;
    table.attention_blocks = attention_blocks;
    table.attention_begin = attention_begin;
    table.attention_scores = attention_scores;
    table.attention_values = attention_values;
    table.attention_finish = attention_finish;
}

}  // namespace iso::ISO_NS
