//! The mark of a finished run, and the files of a checkpoint that say what it holds.
#![no_main]

libfuzzer_sys::fuzz_target!(init: favonius_fuzz::begin(), |data: &[u8]| favonius_fuzz::mark(data));
