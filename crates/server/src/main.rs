//! The binary `hadron`.

/// The engine's memtables and the network make many small allocations on several threads; the system's allocator spent a
/// fifth of a loaded server's CPU on them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    hadron_server::cli::run(std::env::args_os())
}
