//! The `favonius` program. Everything it does is in the library's `commands`.

/// Training allocates and frees large blocks all the time; this allocator keeps them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    favonius::commands::main()
}
