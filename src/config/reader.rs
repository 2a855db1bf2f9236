//! Typed reading of a TOML document that collects every problem instead of stopping at the first.
//!
//! Refuses to know any key of the configuration. Invariants: a value that could not be read has a problem; a key that nobody
//! asked for before [`Table::finish`] has one, too.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::expected::{Expected, is_a, json};
use super::problem::{Problem, nearest, quoted};

/// What one reading knows and has found so far.
pub(super) struct Reading<'a> {
    /// Looks up an environment variable.
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    /// The configuration file's folder, from which relative paths count.
    pub(super) folder: PathBuf,
    lines: Lines,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Reading<'a> {
    pub(super) fn new(text: &str, folder: PathBuf, env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { env, folder, lines: Lines::new(text), problems: RefCell::default() }
    }

    /// The outermost table.
    pub(super) fn root<'t>(&'t self, document: &'t Spanned<DeTable<'t>>) -> Table<'t> {
        Table {
            reading: self,
            path: String::new(),
            line: 1,
            entries: Some(document.get_ref()),
            known: RefCell::default(),
        }
    }

    /// Everything found, in the order of the lines.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line);
        problems.dedup();
        problems
    }

    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// Records errors of the TOML parser, whose messages name what it expected and never what is written.
    pub(super) fn syntax(&self, error: &toml::de::Error) {
        let offset = error.span().map_or(0, |span| span.start);
        let (wrong, right) = match error.message().split_once(", expected ") {
            Some((wrong, expected)) => (wrong, format!("expected {expected}")),
            None => (error.message(), "see https://toml.io/en/v1.1.0".to_owned()),
        };
        let wrong = format!("{wrong} at column {}", self.lines.column(offset));
        self.problem(self.lines.line(offset), "syntax", wrong, right);
    }

    fn problem(&self, line: usize, key: &str, wrong: impl Into<String>, right: impl Into<String>) {
        let problem = Problem { line, key: key.to_owned(), wrong: wrong.into(), right: right.into() };
        self.problems.borrow_mut().push(problem);
    }
}

/// A table of the document, or one that is absent: then every key of it is.
pub(super) struct Table<'t> {
    pub(super) reading: &'t Reading<'t>,
    /// The full dotted key; empty for the outermost table.
    pub(super) path: String,
    line: usize,
    entries: Option<&'t DeTable<'t>>,
    /// Every key asked for: the known ones.
    known: RefCell<Vec<&'static str>>,
}

impl<'t> Table<'t> {
    /// The value of a key, of whatever type.
    pub(super) fn value(&self, key: &'static str) -> Option<Value<'t>> {
        self.ignore([key]);
        let (name, value) = self.entries?.get_key_value(key)?;
        Some(self.entry(name, value))
    }

    /// Reads a key that may be absent. `None` also after a problem.
    pub(super) fn optional<T>(&self, key: &'static str, expected: &Expected<T>) -> Option<T> {
        self.value(key)?.read(expected)
    }

    /// Reads a key that must be there. `None` only after a problem.
    pub(super) fn required<T>(&self, key: &'static str, expected: &Expected<T>) -> Option<T> {
        match self.value(key) {
            Some(value) => value.read(expected),
            None => {
                self.missing(key, &expected.right);
                None
            }
        }
    }

    pub(super) fn missing(&self, key: &str, right: &str) {
        let place = if self.path.is_empty() { "the file".to_owned() } else { format!("[{}]", self.path) };
        self.reading.problem(self.line, &self.full_key(key), format!("is missing in {place}"), right);
    }

    /// A problem of the table as a whole.
    pub(super) fn problem(&self, wrong: impl Into<String>, right: impl Into<String>) {
        self.reading.problem(self.line, &self.path, wrong, right);
    }

    /// The table behind a key; one without entries when the key is absent or not a table.
    pub(super) fn table(&self, key: &'static str) -> Self {
        self.value(key).and_then(|value| value.table()).unwrap_or_else(|| Self {
            reading: self.reading,
            path: self.full_key(key),
            line: self.line,
            entries: None,
            known: RefCell::default(),
        })
    }

    /// Every entry with its name, for tables whose keys are names that the user gives.
    pub(super) fn named(&self) -> Vec<(&'t str, Value<'t>)> {
        let entries = self.entries.into_iter().flatten();
        entries.map(|(name, value)| (name.get_ref().as_ref(), self.entry(name, value))).collect()
    }

    /// Reports the keys that nobody asked for. `strangers` are keys that are known, but not right here, and why.
    pub(super) fn finish(&self, strangers: &[(&str, String)]) {
        let known = self.known.borrow();
        for (name, value) in self.named() {
            if known.contains(&name) {
                continue;
            }
            if let Some((_, wrong)) = strangers.iter().find(|(key, _)| *key == name) {
                value.problem(wrong, "remove it");
            } else if let Some(meant) = nearest(name, known.iter().copied()) {
                value.problem("unknown key", format!("did you mean \"{meant}\"?"));
            } else {
                value.problem("unknown key", format!("known here: {}", known.join(", ")));
            }
        }
    }

    /// Accepts keys without reading them, when a problem elsewhere leaves their meaning open.
    pub(super) fn ignore(&self, keys: impl IntoIterator<Item = &'static str>) {
        let mut known = self.known.borrow_mut();
        for key in keys {
            if !known.contains(&key) {
                known.push(key);
            }
        }
    }

    fn entry(&self, name: &Spanned<impl AsRef<str>>, value: &'t Spanned<DeValue<'t>>) -> Value<'t> {
        Value {
            reading: self.reading,
            key: self.full_key(name.get_ref().as_ref()),
            line: self.reading.lines.line(name.span().start),
            value: value.get_ref(),
        }
    }

    fn full_key(&self, key: &str) -> String {
        let bare = !key.is_empty()
            && key.len() <= 64
            && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        let key = if bare { key.to_owned() } else { quoted(key) };
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
    }
}

/// A value and where it stands.
pub(super) struct Value<'t> {
    pub(super) reading: &'t Reading<'t>,
    /// The full dotted key.
    pub(super) key: String,
    line: usize,
    value: &'t DeValue<'t>,
}

impl<'t> Value<'t> {
    /// `None` after a problem.
    pub(super) fn read<T>(&self, expected: &Expected<T>) -> Option<T> {
        (expected.convert)(self.value).map_err(|wrong| self.problem(wrong, &expected.right)).ok()
    }

    pub(super) fn problem(&self, wrong: impl Into<String>, right: impl Into<String>) {
        self.reading.problem(self.line, &self.key, wrong, right);
    }

    pub(super) fn as_str(&self) -> Option<&'t str> {
        self.value.as_str()
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    pub(super) fn is_a(&self) -> String {
        is_a(self.value)
    }

    /// The value as JSON, or why it cannot be.
    pub(super) fn json(&self) -> Result<serde_json::Value, String> {
        json(self.value)
    }

    /// The table that this value is; a problem when it is none.
    pub(super) fn table(&self) -> Option<Table<'t>> {
        let Some(entries) = self.value.as_table() else {
            self.problem(self.is_a(), format!("write a table [{}]", self.key));
            return None;
        };
        let (reading, line) = (self.reading, self.line);
        Some(Table { reading, path: self.key.clone(), line, entries: Some(entries), known: RefCell::default() })
    }

    /// The items of the array that this value is; a problem when it is none.
    pub(super) fn items(&self, right: &str) -> Option<Vec<Self>> {
        let Some(array) = self.value.as_array() else {
            self.problem(self.is_a(), right);
            return None;
        };
        let item = |(index, value): (usize, &'t Spanned<DeValue<'t>>)| Self {
            reading: self.reading,
            key: format!("{}[{index}]", self.key),
            line: self.reading.lines.line(value.span().start),
            value: value.get_ref(),
        };
        Some(array.iter().enumerate().map(item).collect())
    }

    /// Reads every item of an array. `None` when it is no array; items with problems are left out.
    pub(super) fn list<T>(&self, expected: &Expected<T>) -> Option<Vec<T>> {
        let items = self.items(&format!("{}, in a list", expected.right))?;
        Some(items.iter().filter_map(|item| item.read(expected)).collect())
    }
}

/// From byte offsets to lines and columns, both counted from 1.
struct Lines {
    starts: Vec<usize>,
}

impl Lines {
    fn new(text: &str) -> Self {
        let after_breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(offset, _)| offset + 1);
        Self { starts: std::iter::once(0).chain(after_breaks).collect() }
    }

    fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }

    /// In bytes.
    fn column(&self, offset: usize) -> usize {
        let start = self.starts.get(self.line(offset) - 1).copied().unwrap_or(0);
        offset - start + 1
    }
}

/// The folder of a file, from which the relative paths in it count.
pub(super) fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => absolute(parent),
        _ => absolute(Path::new(".")),
    }
}

/// It can fail only where the working directory is gone; relative paths then stay as they are and fail where they are used.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
