//! The `favonius` program. Its commands are in the library's `commands`.

/// Training allocates and frees large blocks at every step; this allocator keeps them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` in mimalloc's list of options.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

fn main() -> std::process::ExitCode {
    // Memory that was returned to the system after a step would come back page by page, cleared.
    // Without this option a step spends a quarter of its time in the kernel.
    // SAFETY: the option is set before any other thread starts.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    favonius::commands::main()
}
