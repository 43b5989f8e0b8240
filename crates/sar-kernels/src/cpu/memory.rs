//! What becomes of the memory of tensors that are gone.
#![cfg_attr(
    all(target_os = "linux", target_env = "gnu"),
    allow(unsafe_code, reason = "the C library's settings")
)]

/// Has this process keep the memory of tensors that are gone for the next ones.
///
/// glibc gives blocks of 32 MB and more back to the system at once, which then clears every page of
/// the next one: a tenth and more of a pass through the tokenizer at 256 px. Here all threads share
/// one heap, which only grows; where it was measured, to the same peak. For programs, to be called
/// once at their start; other systems' libraries are left as they are.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets numbers of the allocator, which locks itself.
    unsafe {
        // Threads with heaps of their own would still map large blocks one by one.
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}
