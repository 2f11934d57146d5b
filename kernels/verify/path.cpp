// One instruction set's functions; compiled once a set, with its flags, ISO_NS, PATH_SYMBOL and PATH_NAME.
#include "../src/functions.hpp"
#include "paths.hpp"

const Path PATH_SYMBOL = {
    PATH_NAME,
    {iso::ISO_NS::exp_array, iso::ISO_NS::log_array, iso::ISO_NS::tanh_array, iso::ISO_NS::erf_array},
};
