//! Recipes of all stages, and sweeps. The first byte chooses.
#![no_main]

libfuzzer_sys::fuzz_target!(init: favonius_fuzz::begin(), |data: &[u8]| favonius_fuzz::recipe(data));
