// A mixture of experts (NUMERICS.md, section 7): each row takes the experts that its router ranks first.
//
// Invariant: a row's sum runs over its own experts in ascending order, whatever rows are computed beside it. Rows are
// grouped so that an expert's weights are read once a chunk.
#include <string.h>

#include "forward.hpp"

namespace iso {

namespace {

// Probabilities as integers that order like (value descending, id ascending); they are never negative, and a NaN, which
// fails the row later, still has its place.
uint64_t rank_of(float probability, uint32_t id) {
    uint32_t bits;
    memcpy(&bits, &probability, sizeof bits);
    return uint64_t(bits) << 32 | uint32_t(~id);
}

}  // namespace

// Into the workspace's branch.
void Forward::experts(const Layer& layer, const float* x) {
    const size_t n = rows(), all = size(c_.experts), each = size(c_.experts_per_token), inner = size(c_.expert_intermediate);
    at_least(w_.routes, n * all);
    at_least(w_.shares, n * each);
    at_least(w_.chosen, n * each);
    at_least(w_.ranks, n * all);
    at_least(w_.gathered, n * hidden());
    at_least(w_.expert_out, n * hidden());
    float* const routes = w_.routes.data();
    run_linear(layer.router, x, n, all, w_.packed_rows, STORE, 0, routes, all);
    in_rows(n, [&](size_t m) {
        float *const p = routes + m * all, *const shares = w_.shares.data() + m * each;
        uint64_t* const ranks = w_.ranks.data() + m * all;
        k_.softmax(p, p, all);
        for (size_t e = 0; e < all; ++e) ranks[e] = rank_of(p[e], uint32_t(e));
        std::partial_sort(ranks, ranks + each, ranks + all, [](uint64_t a, uint64_t b) { return a > b; });
        for (size_t i = 0; i < each; ++i) {
            const uint32_t id = ~uint32_t(ranks[i]);
            w_.chosen[m * each + i] = int32_t(id);
            shares[i] = p[id];
        }
        if (!c_.normalise_experts) return;
        const float total = k_.row_sum(shares, each);
        for (size_t i = 0; i < each; ++i) shares[i] = shares[i] / total;
    });

    // (row, share) by expert, rows ascending.
    std::vector<std::vector<std::pair<size_t, float>>> taken(all);
    for (size_t m = 0; m < n; ++m)
        for (size_t i = 0; i < each; ++i) taken[size_t(w_.chosen[m * each + i])].emplace_back(m, w_.shares[m * each + i]);

    float* const branch = w_.branch.data();
    memset(branch, 0, n * hidden() * sizeof(float));
    for (size_t e = 0; e < all; ++e) {
        const auto& mine = taken[e];
        if (mine.empty()) continue;
        for (size_t i = 0; i < mine.size(); ++i)
            memcpy(w_.gathered.data() + i * hidden(), x + mine[i].first * hidden(), hidden() * sizeof(float));
        mlp(layer.experts[e], w_.gathered.data(), mine.size(), inner);
        run_linear(layer.experts[e].down, w_.inner.data(), mine.size(), hidden(), w_.packed_rows, STORE, 0,
                   w_.expert_out.data(), hidden());
        in_rows(mine.size(), [&](size_t i) {
            float* const sum = branch + mine[i].first * hidden();
            const float* y = w_.expert_out.data() + i * hidden();
            for (size_t d = 0; d < hidden(); ++d) sum[d] = sum[d] + y[d] * mine[i].second;
        });
    }
}

}  // namespace iso
