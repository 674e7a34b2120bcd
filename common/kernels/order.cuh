// A kernel may begin while the one before it still runs, on cards that can (Hopper and later), if the host asks for it
// (`Kernels::launch_ahead`). Elsewhere both of these are nothing, and kernels run one after the other.
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
