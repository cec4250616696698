//! The `pressmark` program: see `pressmark --help`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Many small rows that come and go leave most of a huge page empty: without them the memory of an
    // import is a quarter less, and no slower. A kernel that has none refuses, which is as good.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    pressmark::cli::main()
}
