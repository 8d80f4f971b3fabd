//! config.json of models.
#![no_main]

libfuzzer_sys::fuzz_target!(init: favonius_fuzz::begin(), |data: &[u8]| favonius_fuzz::config(data));
