//! An answer of a model's server, of either protocol: the same however its bytes were cut, and never a panic. Of the input, the
//! first two bytes say which protocol, and where to cut.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| turnwise::model::fuzzing::read(input));
