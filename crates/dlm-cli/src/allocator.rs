//! How the C library's allocator shares memory out among threads.

/// Lets all threads share two pools of memory, where the allocator is glibc's.
///
/// By itself it gives every thread a pool of its own, and what one thread frees waits there for it alone. A preparation hands batches
/// from thread to thread: its peak then grows with the time that it runs, and not only with what it holds.
pub(crate) fn share_pools() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::ffi::c_int;
        const M_ARENA_MAX: c_int = -8;
        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        // SAFETY: `mallopt` is glibc's own, takes two numbers and may be called at any time; when it refuses, nothing has changed.
        unsafe { mallopt(M_ARENA_MAX, 2) };
    }
}
