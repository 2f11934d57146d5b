// One path's table: this file and the kernels it names are compiled once an instruction set.
#include "kernels.hpp"

namespace iso::ISO_NS {

void fill_linear(Kernels&);
void fill_linear_int8(Kernels&);
void fill_attention(Kernels&);
void fill_norm(Kernels&);
void fill_elementwise(Kernels&);
void fill_noise(Kernels&);
void fill_blake3(Kernels&);

#define ISO_TEXT_(x) #x
#define ISO_TEXT(x) ISO_TEXT_(x)

void fill(Kernels& table) {
    table.name = ISO_TEXT(ISO_NS);
    fill_linear(table);
    fill_linear_int8(table);
    fill_attention(table);
    fill_norm(table);
    fill_elementwise(table);
    fill_noise(table);
    fill_blake3(table);
}

}  // namespace iso::ISO_NS
