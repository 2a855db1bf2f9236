//! A configuration file: a configuration, or problems that name a line.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use turnwise::config::Config;

// A path below which there is nothing, so that no input reads a file of this machine by a relative name.
const FILE: &str = "/nonexistent/turnwise.toml";

fuzz_target!(|text: &str| {
    // Absolute names of files would be read.
    if text.contains("/dev/") || text.contains("/proc") || text.contains("/sys") {
        return;
    }
    match Config::parse(text, Path::new(FILE), &|_| Some("value".to_owned())) {
        Ok(config) => drop(config.warnings()),
        Err(problems) => assert!(!problems.to_string().is_empty()),
    }
});
