// Attention in bf16, for heads of up to 64, 80, 96 and 128 features: smaller ones have zeros behind them. A file for each
// element type: they are compiled side by side.
#include "attention/backward.cuh"
#include "attention/delta.cuh"
#include "attention/forward.cuh"

ATTENTION_FORWARD(bf16, 64)
ATTENTION_FORWARD(bf16, 80)
ATTENTION_FORWARD(bf16, 96)
ATTENTION_FORWARD(bf16, 128)
ATTENTION_BACKWARD(bf16, 64)
ATTENTION_BACKWARD(bf16, 80)
ATTENTION_BACKWARD(bf16, 96)
ATTENTION_BACKWARD(bf16, 128)
ATTENTION_DELTA(bf16, bf16)
