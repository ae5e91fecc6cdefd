// LATTICA_BOTH marks functions that run on the CPU and, compiled by nvcc, on the GPU.
#pragma once

#ifdef __CUDACC__
#define LATTICA_BOTH __host__ __device__
#else
#define LATTICA_BOTH
#endif
