#![doc = include_str!("../README.md")]
#![cfg_attr(
    all(target_os = "linux", target_env = "gnu"),
    allow(unsafe_code, reason = "the C library's settings")
)]

/// Has this process keep the memory of tensors that are gone for the next ones, and says whether it
/// does.
///
/// glibc gives blocks of 32 MB and more back to the system at once, which then clears every page of
/// the next one: a tenth and more of a pass through the tokenizer at 256 px. Here all threads share
/// one heap, which only grows; where it was measured, to the same peak.
///
/// For programs, to be called first in `main`. The settings may not change while another thread
/// allocates, so that nothing is done once the process has a second thread, or where `/proc` does not
/// say that it has none. Other systems' libraries are left as they are.
pub fn keep_freed_memory() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count);
        if !matches!(threads, Ok(1)) {
            return false;
        }
        // SAFETY: sets numbers of the allocator, on the only thread that there is.
        unsafe {
            // Threads with heaps of their own would still map large blocks one by one.
            libc::mallopt(libc::M_ARENA_MAX, 1) == 1
                && libc::mallopt(libc::M_MMAP_MAX, 0) == 1
                && libc::mallopt(libc::M_TRIM_THRESHOLD, -1) == 1
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_a_second_thread_is_left_as_it_is() {
        // The test itself runs beside the harness's thread.
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(!keep_freed_memory()));
        });
    }
}
