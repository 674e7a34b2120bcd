// A kernel may begin while the one before it still runs, on Hopper, if the host asks for it (`Kernels::launch_ahead`).
// Elsewhere both of these are nothing, and kernels run one after the other: on older GPUs, and on newer ones, for which
// the driver translates what was compiled for sm_89.
#pragma once

// Lets the next kernel begin once all blocks have come here.
__device__ __forceinline__ void next_may_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Waits until all that earlier kernels write is there. Whatever is read before is nothing that they write.
__device__ __forceinline__ void wait_for_earlier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
