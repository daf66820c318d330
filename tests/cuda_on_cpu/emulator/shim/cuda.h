// Stands where nvcc finds <cuda.h>.
#include "cuda_on_cpu.h"
