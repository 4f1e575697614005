// SPDX-License-Identifier: MIT OR GPL-2.0
// The maps of kept.bpf.c with values of another layout and the same size.
#define LAYOUT
#include "kept.bpf.c"
