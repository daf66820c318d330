// Everything a kernel source may use, as C++ that runs on the host. The shims in shim/ put this header where nvcc
// finds its own, so a kernel needs no changes and no conditionals. What is not declared here does not compile:
// that is how a kernel learns that a feature has no emulation.
#pragma once
#include "execution.h"
#include "arithmetic.h"
#include "collectives.h"
#include "memory.h"
#include "tensor_core.h"
#include "hopper.h"
