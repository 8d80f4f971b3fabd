//! The header of safetensors files, and the tensors that it names.
#![no_main]

libfuzzer_sys::fuzz_target!(init: favonius_fuzz::begin(), |data: &[u8]| favonius_fuzz::safetensors(data));
