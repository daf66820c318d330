// Stands where nvcc finds <cuda_bf16.h>.
#include "cuda_on_cpu.h"
