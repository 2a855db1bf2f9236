//! Whether something that cannot be undone may be done: at the terminal, or by `--yes`.
//!
//! Refuses to take silence for a yes. Invariant: where nobody can be asked, nothing is done.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::{on_terminal, say};

#[derive(Debug, Args)]
pub(super) struct Consent {
    /// Only say what would be done
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do it without asking
    #[arg(long)]
    pub(super) yes: bool,
    /// Print what was done as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// A reason that says something.
pub(super) fn said(text: &str) -> Result<String, &'static str> {
    match text.trim() {
        "" => Err("say why, for those who look for the message later"),
        text => Ok(text.to_owned()),
    }
}

/// The exit code when it must not be done: somebody said no, or nobody could be asked.
pub(super) async fn refused(consent: &Consent, verb: &str) -> anyhow::Result<Option<ExitCode>> {
    if consent.yes {
        return Ok(None);
    }
    if !std::io::stdin().is_terminal() || !on_terminal() {
        say(&format!(
            "error: nothing was done, for nobody can be asked here\nhint: {verb} with --yes, or look with --dry-run"
        ));
        return Ok(Some(ExitCode::from(2)));
    }
    let asked = tokio::task::spawn_blocking(|| {
        let _ = write!(std::io::stderr(), "Go on? [y/N] ");
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer).map(|_| answer)
    });
    let answer = asked.await?.context("cannot read the answer")?;
    if ["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()) {
        return Ok(None);
    }
    say("nothing was done");
    Ok(Some(ExitCode::FAILURE))
}
