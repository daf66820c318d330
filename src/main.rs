//! The `recant` program: everything is in the library.

fn main() -> std::process::ExitCode {
    recant::cli::main()
}
