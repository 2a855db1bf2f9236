//! Keeps the layering: the module list of `src/lib.rs` is contents page and order at once, and a module imports only from
//! modules above it. Also keeps that every source file opens by saying what it is for.
//!
//! Reads the sources as text, without comments and string contents; knows no exceptions.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn modules_import_only_from_modules_above_them() {
    let layers = layers(&fs::read_to_string(source_folder().join("lib.rs")).unwrap());
    assert!(!layers.is_empty(), "src/lib.rs declares no modules");
    let faults: Vec<String> = source_files()
        .iter()
        .filter_map(|path| Some((path, module_of(path)?)))
        .flat_map(|(path, module)| {
            let text = fs::read_to_string(path).unwrap();
            faults_of(&layers, &module, &text)
                .into_iter()
                .map(|fault| format!("{}: {fault}", path.display()))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_file_opens_with_what_it_is_for() {
    let silent: Vec<String> = source_files()
        .iter()
        .filter(|path| !fs::read_to_string(path).unwrap().starts_with("//! "))
        .map(|path| path.display().to_string())
        .collect();
    assert!(silent.is_empty(), "these files do not open with `//!`:\n{}", silent.join("\n"));
}

/// The checker itself: what it must see, and what it must not take for an import.
#[test]
fn the_checker_sees_every_form_of_import() {
    let layers = layers("//! List.\npub mod low;\n\nmod middle;\npub(crate) mod high;\n// pub mod gone;\n");
    assert_eq!(layers, ["low", "middle", "high"]);
    for (module, text, faults) in [
        ("middle", "use crate::low::Thing;", 0),
        ("middle", "use crate::middle::part::Thing;", 0),
        ("middle", "use crate::high::Thing;", 1),
        ("middle", "use crate::{low::Thing, high::{A, B}};", 1),
        ("low", "use crate::{\n    high,\n    middle::{self, crate_like},\n};", 2),
        ("low", "fn f() { crate::high::call(); }", 1),
        ("low", "fn f() { turnwise::high::call(); }", 0),
        ("low", "//! [`crate::high::Thing`]\n/// See [`crate::high`].\n// crate::high\n/* crate::high */", 0),
        ("low", "const T: &str = \"crate::high // not a comment\"; use crate::high;", 1),
        ("low", "use super::super::high;", 0),
        ("stray", "use crate::low;", 1),
    ] {
        let found = faults_of(&layers, module, text);
        assert_eq!(found.len(), faults, "{module}: {text}: {found:?}");
    }
}

fn source_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every `.rs` file below `src`, in a stable order.
fn source_files() -> Vec<PathBuf> {
    let mut folders = vec![source_folder()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// The layer a file belongs to: `src/store/sqlite.rs` to `store`. `lib.rs` and `main.rs` stand above all layers.
fn module_of(path: &Path) -> Option<String> {
    let inside = path.strip_prefix(source_folder()).unwrap();
    let first = inside.components().next()?.as_os_str().to_str()?;
    let module = first.strip_suffix(".rs").unwrap_or(first);
    (!matches!(module, "lib" | "main")).then(|| module.to_owned())
}

/// The modules that `lib.rs` declares, topmost first.
fn layers(lib: &str) -> Vec<String> {
    code_of(lib)
        .split(';')
        .filter_map(|item| {
            let mut words = item.split_whitespace().rev();
            let name = words.next()?;
            (words.next() == Some("mod")).then(|| name.to_owned())
        })
        .collect()
}

/// What is wrong with the imports of one file of `module`.
fn faults_of(layers: &[String], module: &str, text: &str) -> Vec<String> {
    let place = |name: &str| layers.iter().position(|layer| layer == name);
    let Some(own) = place(module) else {
        return vec![format!("src/lib.rs does not declare the module `{module}`")];
    };
    imports(&code_of(text))
        .into_iter()
        .filter(|import| place(import).is_some_and(|other| other > own))
        .map(|import| format!("`{module}` imports `{import}`, which stands below it in src/lib.rs"))
        .collect()
}

/// The first path segments after every `crate::`, groups in braces included.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, marker) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_') {
            continue;
        }
        let rest = code[at + marker.len()..].trim_start();
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_heads(group)),
            None => found.push(identifier(rest)),
        }
    }
    found
}

/// The first segment of each member of a braced group, whose opening brace is already taken off.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let mut depth = 0_usize;
    let mut member_begins = true;
    for (at, letter) in group.char_indices() {
        match letter {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => member_begins = true,
            _ if member_begins && !letter.is_whitespace() => {
                heads.push(identifier(&group[at..]));
                member_begins = false;
            }
            _ => {}
        }
    }
    heads
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// The text without comments and without the contents of string literals, so that only code is searched.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        rest = if rest.starts_with("//") {
            rest.find('\n').map_or("", |end| &rest[end..])
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or("", |end| &rest[end + 2..])
        } else if let Some(end) = literal_end(rest) {
            code.push_str("\"\"");
            &rest[end..]
        } else {
            code.push(letter);
            &rest[letter.len_utf8()..]
        };
    }
    code
}

/// The length of the literal that `text` begins with: a string, a raw string, or a character that could be mistaken for the
/// beginning of one.
fn literal_end(text: &str) -> Option<usize> {
    if text.starts_with("'\"'") {
        return Some(3);
    }
    if text.starts_with("'\\\"'") {
        return Some(4);
    }
    if text.starts_with("r#") || text.starts_with("r\"") {
        let hashes = text[1..].len() - text[1..].trim_start_matches('#').len();
        let body = 1 + hashes;
        if text[body..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            return Some(text[body + 1..].find(&close).map_or(text.len(), |end| body + 1 + end + close.len()));
        }
        return None;
    }
    let body = text.strip_prefix('"')?;
    let mut escaped = false;
    for (at, letter) in body.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 2),
            _ => {}
        }
    }
    Some(text.len())
}
