//! The `turnwise` binary: the library's command line, with no responders of its own.

use std::process::ExitCode;

use turnwise::responder::Responders;

#[tokio::main]
async fn main() -> ExitCode {
    turnwise::cli::main(Responders::new()).await
}
