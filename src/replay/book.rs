//! The files of a replay: `turns.jsonl`, a line for each turn, `run.json` and `report.html`.
//!
//! Refuses a folder that holds anything else, or another replay. Invariants: lines are only appended, in the order of the
//! turns, so that the last whole one is where a run goes on; a line that was torn by a crash is cut off before that.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ReplayError;
use super::compare::Change;
use super::past::{Answer, Call};
use super::report;
use super::run::{Asked, Latencies, Run, State};
use crate::message::Timestamp;

pub const LINES_FILE: &str = "turns.jsonl";
pub const RUN_FILE: &str = "run.json";
pub const REPORT_FILE: &str = "report.html";

/// So often, in turns, `run.json` is brought up to date.
const SAVED_EVERY: u64 = 100;

/// One turn, and what the candidate made of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Line {
    pub turn: Uuid,
    pub conversation: Uuid,
    pub bot: String,
    pub received_at: Timestamp,
    /// Who answered it when it was recorded.
    pub responder: String,
    /// What the user said.
    pub message: String,
    pub recorded: Answer,
    pub candidate: Answer,
    /// Beyond the noise; empty when nothing has changed.
    pub changes: BTreeSet<Change>,
    /// The share of words that the two replies do not have in common, 0 to 1.
    pub distance: f64,
    /// The most by which the incumbent's own replies differ; absent where it was not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<f64>,
    /// Calls that were not made when the turn was recorded, so that nothing was known to give.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drift: Vec<Call>,
    /// Used by this turn's replay.
    pub tokens: u64,
    /// Of the replay; its root span is linked to the original's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// W3C trace context of the turn when it was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<String>,
}

impl Line {
    /// Without anything that anybody said.
    pub(super) fn redacted(mut self) -> Self {
        hide(&mut self.message);
        for answer in [&mut self.recorded, &mut self.candidate] {
            hide(&mut answer.reply);
            answer.calls.iter_mut().for_each(|call| hide(&mut call.arguments));
        }
        self.drift.iter_mut().for_each(|call| hide(&mut call.arguments));
        self
    }
}

fn hide(text: &mut String) {
    if !text.is_empty() {
        *text = format!("[{} characters]", text.chars().count());
    }
}

/// An open folder.
pub(super) struct Book {
    folder: PathBuf,
    lines: File,
    run: Run,
    last: Option<Uuid>,
    latencies: [Latencies; 2],
}

impl Book {
    /// Begins a run in a new or empty folder, or opens the one that was begun there.
    pub(super) fn open(folder: &Path, asked: Asked) -> Result<Self, ReplayError> {
        std::fs::create_dir_all(folder).map_err(fault(folder))?;
        let run = match begun(folder)? {
            Some(run) if run.asked.is_continued_by(&asked) => Run::begun(run.asked, run.started),
            Some(_) => return Err(occupied(folder, "another replay")),
            None => Run::begun(asked, Timestamp::now()),
        };
        let path = folder.join(LINES_FILE);
        let lines = OpenOptions::new().create(true).read(true).append(true).open(&path).map_err(fault(&path))?;
        let mut book = Self { folder: folder.to_owned(), lines, run, last: None, latencies: Default::default() };
        let whole = book.read_back().map_err(fault(&path))?;
        book.lines.set_len(whole).map_err(fault(&path))?;
        Ok(book)
    }

    pub(super) const fn run(&self) -> &Run {
        &self.run
    }

    /// The last turn that is done.
    pub(super) const fn last(&self) -> Option<Uuid> {
        self.last
    }

    /// Tells the world that the run is under way, unless it is over before it begins.
    pub(super) fn begin(&mut self, is_over: bool) -> Result<(), ReplayError> {
        if is_over { Ok(()) } else { self.save() }
    }

    pub(super) fn write(&mut self, line: &Line) -> Result<(), ReplayError> {
        let path = self.folder.join(LINES_FILE);
        let mut text = serde_json::to_vec(line).map_err(|error| fault(&path)(error.into()))?;
        text.push(b'\n');
        // In one piece, so that a process that is killed tears the last line at most.
        self.lines.write_all(&text).map_err(fault(&path))?;
        self.count(line);
        if self.run.turns.is_multiple_of(SAVED_EVERY) { self.save() } else { Ok(()) }
    }

    /// Writes the report and closes the book.
    pub(super) fn end(mut self, state: State) -> Result<Run, ReplayError> {
        let path = self.folder.join(REPORT_FILE);
        self.sum_up();
        self.run.finished = Some(Timestamp::now());
        self.run.state = state;
        let lines = self.folder.join(LINES_FILE);
        let lines = BufReader::new(File::open(&lines).map_err(fault(&lines))?);
        let lines = lines.lines().map(|line| serde_json::from_str(&line?).map_err(io::Error::from));
        replace(&path, |file| report::write(file, &self.run, lines)).map_err(fault(&path))?;
        self.save()?;
        Ok(self.run)
    }

    /// Counts the whole lines that there are, and tells how many bytes they take.
    fn read_back(&mut self) -> io::Result<u64> {
        let mut lines = BufReader::new(self.lines.try_clone()?);
        let (mut text, mut whole) = (Vec::new(), 0);
        loop {
            text.clear();
            let length = lines.read_until(b'\n', &mut text)?;
            match serde_json::from_slice::<Line>(&text) {
                Ok(line) if text.ends_with(b"\n") => self.count(&line),
                _ => return Ok(whole),
            }
            whole += length as u64;
        }
    }

    fn count(&mut self, line: &Line) {
        self.run.add(line);
        self.last = Some(line.turn);
        for (latencies, answer) in self.latencies.iter_mut().zip([&line.recorded, &line.candidate]) {
            if answer.error.is_none() {
                latencies.add(answer.latency_ms);
            }
        }
    }

    fn sum_up(&mut self) {
        for (totals, latencies) in [&mut self.run.recorded, &mut self.run.candidate].into_iter().zip(&self.latencies) {
            totals.latency_p50_ms = latencies.percentile(50);
            totals.latency_p95_ms = latencies.percentile(95);
        }
    }

    fn save(&mut self) -> Result<(), ReplayError> {
        self.sum_up();
        let path = self.folder.join(RUN_FILE);
        replace(&path, |file| {
            serde_json::to_writer_pretty(&mut *file, &self.run)?;
            file.write_all(b"\n")
        })
        .map_err(fault(&path))
    }
}

/// The run that was begun in a folder.
fn begun(folder: &Path) -> Result<Option<Run>, ReplayError> {
    let path = folder.join(RUN_FILE);
    match std::fs::read(&path) {
        Ok(text) => {
            serde_json::from_slice(&text).map(Some).map_err(|_| occupied(folder, "a run.json of something else"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut entries = std::fs::read_dir(folder).map_err(fault(folder))?;
            match entries.next() {
                Some(_) => Err(occupied(folder, "other files")),
                None => Ok(None),
            }
        }
        Err(error) => Err(fault(&path)(error)),
    }
}

/// Writes a file under another name first, so that whoever reads it finds the old one or the new one.
fn replace(path: &Path, write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = io::BufWriter::new(File::create(&new)?);
    write(&mut file)?;
    file.flush()?;
    drop(file);
    std::fs::rename(&new, path)
}

fn occupied(folder: &Path, what: &str) -> ReplayError {
    ReplayError::Occupied { folder: folder.to_owned(), what: what.to_owned() }
}

fn fault(path: &Path) -> impl Fn(io::Error) -> ReplayError {
    let path = path.to_owned();
    move |source| ReplayError::File { path: path.clone(), source }
}
