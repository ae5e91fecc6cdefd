// LATTICA_BOTH marks functions that run on the CPU and, compiled by nvcc, on the GPU; LATTICA_DEVICE those that do
// as part of a program that a CPU runs in cpu/ and the GPU, never the host, in cuda/.
#pragma once

#ifdef __CUDACC__
#define LATTICA_BOTH __host__ __device__
#define LATTICA_DEVICE __device__
#else
#define LATTICA_BOTH
#define LATTICA_DEVICE
#endif
