// Stands where nvcc finds <cuda_runtime.h>.
#include "cuda_on_cpu.h"
