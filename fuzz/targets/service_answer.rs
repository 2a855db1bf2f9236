//! An answer of a responder's own service: the same however its bytes were cut, and never a panic. Of the input, the first two
//! bytes say whether it is a stream, and where to cut.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| turnwise::responder::http::fuzzing::read(input));
