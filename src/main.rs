//! The `turnwise` binary: the library's command line, with no responders of its own, and the allocator that suits many small
//! values passed between threads.

use std::process::ExitCode;

use turnwise::responder::Responders;

/// A quarter of the time under load went into the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    turnwise::cli::main(Responders::new()).await
}
