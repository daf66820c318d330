// Stands where nvcc finds <cuda_fp16.h>.
#include "cuda_on_cpu.h"
