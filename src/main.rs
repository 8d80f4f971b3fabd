//! The `favonius` program. Everything it does is in the library's `commands`.

/// Training allocates and frees large blocks all the time; this allocator keeps them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc's list of options.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

fn main() -> std::process::ExitCode {
    // Memory that goes back to the system after each step comes again page by page, cleared: without
    // this a step spends a quarter of its time in the kernel.
    // SAFETY: the option is set before there is a second thread.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    favonius::commands::main()
}
