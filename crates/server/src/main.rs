//! The binary `hadron`.

fn main() -> std::process::ExitCode {
    hadron_server::cli::run(std::env::args_os())
}
