//! The `pressmark` program: see `pressmark --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pressmark::cli::main()
}
