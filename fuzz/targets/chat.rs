//! The bodies of the chat API, and the headers that go with them: refused with a problem, or within every documented bound.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| turnwise::ingress::fuzzing::read(input));
