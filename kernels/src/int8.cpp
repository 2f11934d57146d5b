// The int8 linear over the pool, in one pass or, with checksums, in two with the check between them.
//
// Invariant: with checksums no sum is used before its row was found right. A row that was wrong is computed again from x; if
// it is wrong again, its scale becomes NaN, so that all its outputs are NaN.
#include "int8.hpp"

#include "failure.hpp"
#include "pool.hpp"

namespace iso {

namespace {

// Panels a task, microseconds of work.
size_t grain(const Packed& w, size_t rows) {
    return 1 + (size_t(1) << 15) / (w.groups() * 4 * PANEL * rows);
}

constexpr size_t MOST_SUMS = size_t(2) << 20;  // of a checked chunk of rows, 4 bytes each

// Arrays of one call, cut out of the caller's scratch; the largest elements first.
class Scratch {
   public:
    Scratch(Buffer<float>& buffer, size_t bytes) {
        at_least(buffer, (bytes + sizeof(float) - 1) / sizeof(float));
        next_ = reinterpret_cast<uint8_t*>(buffer.data());
    }
    template <typename T>
    T* take(size_t count) {
        T* const here = reinterpret_cast<T*>(next_);
        next_ += count * sizeof(T);
        return here;
    }

   private:
    uint8_t* next_;
};

void pack_tiles(const Kernels& k, const Packed& w, const float* x, size_t rows, uint8_t* packed, float* scales,
                uint64_t* expected) {
    const size_t tile = k.int8_rows, width = w.groups() * 4;
    const int64_t* const c = expected ? w.checksum().c.data() : nullptr;
    parallel((rows + tile - 1) / tile, [&](size_t i) {
        const size_t m = i * tile;
        k.pack_int8_rows(x + m * w.k(), w.k(), rows - m < tile ? rows - m : tile, w.k(), packed + m * width, scales + m, c,
                         expected ? expected + m : nullptr);
    });
}

// One row once more, from x; true if its checksum holds now.
bool compute_again(const Kernels& k, const Packed& w, const Int8Call& call, const float* x, size_t m, size_t first,
                   int32_t* sums, float* scales) {
    Buffer<uint8_t> packed(w.groups() * 4);
    uint64_t expected, found = 0;
    k.pack_int8_rows(x + m * w.k(), w.k(), 1, w.k(), packed.data(), scales + m, w.checksum().c.data(), &expected);
    Int8Call one = call;
    one.x = packed.data(), one.rows = 1;
    const uint32_t* const r = checksum_weights(w.panels() * PANEL);
    for (size_t p = 0; p < w.panels(); ++p) {
        int32_t* const here = sums + (p * call.rows + m) * PANEL;
        uint64_t part;
        k.linear_int8_sums(one, p, here);
        if (injecting_linears()) corrupt_sums(w, p, first + m, 1, here);
        k.weigh_sums(here, 1, r + p * PANEL, &part);
        found += part;
    }
    return found == expected;
}

void run_checked(const Kernels& k, const Packed& w, Int8Call call, const float* x, Buffer<float>& scratch, size_t first) {
    const size_t rows = call.rows, panels = w.panels();
    Scratch arrays(scratch, 8 * rows * (panels + 1) + 4 * rows * (panels * PANEL + 1) + rows * w.groups() * 4);
    uint64_t* const expected = arrays.take<uint64_t>(rows);
    uint64_t* const weighed = arrays.take<uint64_t>(panels * rows);
    int32_t* const sums = arrays.take<int32_t>(panels * rows * PANEL);
    float* const scales = arrays.take<float>(rows);
    uint8_t* const packed = arrays.take<uint8_t>(rows * w.groups() * 4);
    pack_tiles(k, w, x, rows, packed, scales, expected);
    call.x = packed, call.row_scales = scales;

    const uint32_t* const r = checksum_weights(panels * PANEL);
    parallel(panels, grain(w, rows), MAX_THREADS, [&](size_t p, int) {
        int32_t* const here = sums + p * rows * PANEL;
        k.linear_int8_sums(call, p, here);
        if (injecting_linears()) corrupt_sums(w, p, first, rows, here);
        k.weigh_sums(here, rows, r + p * PANEL, weighed + p * rows);
    });
    size_t damaged = 0;
    bool looked = false;  // at all weights, which takes long where every row fails
    for (size_t m = 0; m < rows; ++m) {
        uint64_t found = 0;
        for (size_t p = 0; p < panels; ++p) found += weighed[p * rows + m];
        if (found == expected[m]) continue;
        const bool recomputed = compute_again(k, w, call, x, m, first, sums, scales);
        if (!recomputed) {
            scales[m] = __builtin_nanf("");
            if (!looked) damaged = damaged_panels(w, w.checksum()).size();
            looked = true;
        }
        remember_corruption({w.name(), first + m, recomputed, recomputed ? 0 : damaged});
    }
    const size_t outputs = panels_of(call.n), each = call.epilogue == GATED ? 2 : 1;
    parallel(outputs, grain_of(outputs), MAX_THREADS, [&](size_t p, int) {
        const int32_t* const gate = sums + each * p * rows * PANEL;
        k.linear_int8_finish(call, p, gate, gate + (each - 1) * rows * PANEL);
    });
}

}  // namespace

void run_int8(const Packed& w, const float* x, size_t rows, size_t n, Buffer<float>& scratch, Epilogue epilogue,
              int activation, float* y, size_t y_stride) {
    const Kernels& k = kernels();  // one for the whole call: paths pack rows differently, and another may be chosen meanwhile
    if (injecting_linears()) corrupt_weights(w);
    Int8Call call{nullptr, nullptr, rows, w.groups(), n, w.int8(), w.scales(), w.offsets(), w.bias(), y, y_stride, epilogue, activation};
    if (w.checksum()) {
        const size_t tile = k.int8_rows, fit = MOST_SUMS / (w.panels() * PANEL) / tile * tile;
        const size_t most = fit ? fit : tile;
        for (size_t m = 0; m < rows; m += most) {
            call.rows = rows - m < most ? rows - m : most;
            call.y = y + m * y_stride;
            run_checked(k, w, call, x + m * w.k(), scratch, m);
        }
        return;
    }
    Scratch arrays(scratch, 4 * rows + rows * w.groups() * 4);
    float* const scales = arrays.take<float>(rows);
    uint8_t* const packed = arrays.take<uint8_t>(rows * w.groups() * 4);
    pack_tiles(k, w, x, rows, packed, scales, nullptr);
    call.x = packed, call.row_scales = scales;
    const size_t panels = panels_of(n);
    parallel(panels, grain(w, rows), MAX_THREADS, [&](size_t panel, int) { k.linear_int8_panel(call, panel); });
}

}  // namespace iso
